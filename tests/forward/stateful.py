"""Modules that write to their buffers, in each of the ways that a module may."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.verifier import SpecViolationError
from torch.export import Dim, ExportedProgram

from tests.forward.cases import Of


class NoFunctionalGraphError(Exception):
    """torch's own limit, not ours."""


def holding(function: Callable[..., Any], **tensors: Tensor) -> nn.Module:
    """A module that runs `function(self, x)` and has these buffers, and the parameter `weight`."""
    model = Of(function)
    model.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    return model.eval()


def counter() -> nn.Module:
    """It adds up what it is given; the sum is its one state, `total`."""

    def forward(m: Any, x: Tensor) -> Tensor:
        m.total.add_(x)
        return m.total * m.weight

    return holding(forward, total=torch.zeros(3))


class Decoder(nn.Module):
    """One layer of attention over a cache of sixteen places; the prompt's length may change."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(11, 8), nn.Linear(8, 24), nn.Linear(8, 11)
        self.register_buffer("keys", torch.zeros(16, 8), persistent=False)
        self.register_buffer("values", torch.zeros(16, 8), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, -1)
        self.keys.index_copy_(0, places, k)
        self.values.index_copy_(0, places, v)
        self.seen.add_(tokens.shape[0])
        mask = torch.arange(16) <= places[:, None]
        scores = (q @ self.keys.mT).masked_fill(~mask, float("-inf"))
        return self.out(scores.softmax(-1) @ self.values)


DECODER_SIZES = {name: {0: Dim("length", min=1, max=16)} for name in ("tokens", "places")}


def prompt(length: int, seed: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and their places."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 11, (length,), generator=generator), torch.arange(start, start + length)


def decoder() -> nn.Module:
    torch.manual_seed(0)
    return Decoder().eval()


def exported(model: nn.Module, *args: Any, functional: bool = False, **options: Any) -> ExportedProgram:
    """The program: with operators that write, or where functional with outputs that are written back.

    Of a copy, so that the model's own buffers stay as they are whatever is done with the program.

    Raises:
        NoFunctionalGraphError: torch makes none where buffers share memory or it writes to a constant.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        program = torch.export.export(copy.deepcopy(model), args, **options)
        try:
            return program.run_decompositions({}) if functional else program
        except (AssertionError, RuntimeError, SpecViolationError) as error:
            raise NoFunctionalGraphError from error


# Each way to use a session.
USES: dict[str, Callable[[Any], Any]] = {
    "a call": lambda s: s(torch.ones(1)),
    "copy": lambda s: s.copy(),
    "copy.copy": copy.copy,
    "reset": lambda s: s.reset(),
    "close": lambda s: s.close(),
    "state": lambda s: s.state,
    "state, set": lambda s: setattr(s, "state", {"a": torch.ones(1)}),
    "pickle": pickle.dumps,
}
