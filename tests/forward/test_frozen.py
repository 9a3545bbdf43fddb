"""freeze=True: a package with the weights compiled in, and a model that may not change after that."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchgil
from tests.forward.comparing import assert_close
from torchgil.forward._frozen import FrozenWatch
from torchgil.forward._inductor import _key
from torchgil.forward._inputs import plan_inputs
from torchgil.forward._instructions import plan
from torchgil.forward._manifest import Manifest
from torchgil.forward._weights import weight_of

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="no C++ compiler to compile the package with",
)


class ConvNorm(nn.Module):
    """Statistics far from 0 and 1, so that a batch norm folded wrongly shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution and batch norm": (ConvNorm, (2, 3, 8, 8)),
    "linear": (lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)), (3, 16)),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True),
        (2, 5, 32),
    ),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", MODELS)
def test_results_are_within_rounding_of_the_models(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, size = MODELS[name]
    model, x = make().eval(), torch.randn(size)
    forward: Any = torchgil.nogil(
        model,
        (x,),
        dynamic_shapes=({0: Dim("batch", max=64)},),
        backend="inductor",
        runners=2,
        cache_dir=tmp_path,
        freeze=True,
    )
    for batch in (2, 7):
        x = torch.randn(batch, *size[1:])
        with torch.inference_mode():
            assert_close(forward(x), model(x))
    with zipfile.ZipFile(forward.path) as archive:  # Inductor made constants of its own
        assert any(b"_frozen_param" in archive.read(item) for item in archive.namelist())
    again = torchgil.load_package(forward.path)
    assert again.frozen
    assert repr(again).endswith("backend='inductor', frozen)")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match=r"^nogil: the values of '.*' of the model changed since"):
        forward(x)
    before = again(x)  # a package that was loaded knows no model
    del model
    gc.collect()
    assert_close(forward(x), before)


def watched(model: nn.Module, x: Tensor) -> FrozenWatch:
    program = torch.export.export(model, (x,))
    return FrozenWatch(model, {name: weight_of(program, name) for name in plan(program).weights})


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return ConvNorm().eval()


X = torch.ones(2, 3, 8, 8)


def step(model: Any) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimiser.step()


def assign(model: Any) -> None:
    model.conv.weight.data = model.conv.weight.data * 2


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "an optimiser": ("conv.weight", step),
    "load_state_dict": ("conv.weight", lambda m: m.load_state_dict(m.state_dict())),
    "data": ("conv.weight", assign),
    "a buffer in place": ("norm.running_var", lambda m: m.norm.running_var.fill_(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_values_is_an_error_that_names_the_weight(model: nn.Module, change: str) -> None:
    watch = watched(model, X)
    name, apply = CHANGES[change]
    model(X)  # in eval mode it writes to nothing
    watch.check()
    apply(model)
    with pytest.raises(
        RuntimeError, match=f"^nogil: the values of '{name}' of the model changed since .* again"
    ):
        watch.check()


def test_a_weight_that_was_replaced_is_an_error(model: Any) -> None:
    watch = watched(model, X)
    model.conv.weight = nn.Parameter(model.conv.weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"^nogil: 'conv.weight' of the model was replaced since"):
        watch.check()


def test_weights_made_under_inference_mode_are_watched_by_where_they_are() -> None:
    with torch.inference_mode():
        model = ConvNorm().eval().requires_grad_(False)
    watch = watched(model, X)
    watch.check()
    assign(model)
    with pytest.raises(RuntimeError, match=r"the values of 'conv.weight' of the model changed"):
        watch.check()


def test_the_model_is_not_kept() -> None:
    model: Any = ConvNorm().eval()
    watch = watched(model, X)
    gone = weakref.ref(model.conv.weight)
    del model
    gc.collect()
    assert gone() is None
    watch.check()


def test_frozen_is_part_of_the_key_and_of_what_a_package_says_of_itself(model: nn.Module) -> None:
    program = torch.export.export(model, (X,))
    plain, frozen = (Manifest.of(program, plan_inputs(program), frozen=f) for f in (False, True))
    assert _key(program, plain.dumps()) != _key(program, frozen.dumps())
    assert [Manifest.loads(m.dumps()).frozen for m in (plain, frozen)] == [False, True]
    earlier = {key: value for key, value in json.loads(plain.dumps()).items() if key != "frozen"}
    assert not Manifest.loads(json.dumps(earlier)).frozen
