"""Bit-for-bit comparison of whole results, and export without its chatter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram

from tests.forward.models import Case
from torchgil.forward._torch_compat import refusal_of


def export(case: Case) -> tuple[torch.nn.Module, ExportedProgram]:
    """The case's model in eval mode, with the same weights each time, and its exported program."""
    torch.manual_seed(0)
    model = case.make().eval()
    args, kwargs = case.inputs(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own, an LSTM's flat weights for one
        try:
            return model, torch.export.export(model, args, kwargs, dynamic_shapes=case.dynamic_shapes)
        except ValueError as error:
            if why := refusal_of(error):
                pytest.skip(why)
            raise


def reference(program: ExportedProgram) -> Any:
    """The exported module as the program must run it: under inference mode."""
    module = program.module(check_guards=False)  # torch 2.9's guard function fails over a model's *args

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return module(*args, **kwargs)

    return run


def assert_same(got: Any, want: Any) -> None:
    """Same structure, types, dtypes, sizes, strides and bits."""
    got_leaves, got_spec = pytree.tree_flatten(got)
    want_leaves, want_spec = pytree.tree_flatten(want)
    assert got_spec == want_spec
    for ours, theirs in zip(got_leaves, want_leaves, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, torch.Tensor):
            assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
            assert torch.equal(_bits(ours), _bits(theirs)), f"differs by {(ours - theirs).abs().max()}"
        else:
            assert ours == theirs


def assert_close(got: Any, want: Any) -> None:
    """Equal within the tolerances of the dtypes."""
    for ours, theirs in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        else:
            assert ours == theirs


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
