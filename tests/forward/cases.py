"""How the forward tests name a model, its example inputs, and other inputs of the same structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model and what to call it with; `inputs(seed)` differs in values, and in sizes if dynamic."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    dynamic_shapes: Any = None


CASES: list[Case] = []


def case(name: str, make: Callable[[], nn.Module], *shapes: Any, dynamic_shapes: Any = None) -> None:
    """Registers a model whose inputs are random tensors; a shape may be a function of the seed."""

    def inputs(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        sized = [shape(seed) if callable(shape) else shape for shape in shapes]
        return tuple(torch.randn(shape, generator=generator) for shape in sized), {}

    CASES.append(Case(name, make, inputs, dynamic_shapes))


def given(name: str, make: Callable[[], nn.Module], dynamic_shapes: Any = None) -> Callable[[Any], Any]:
    """Registers a model whose inputs the decorated function makes from a generator and a seed."""

    def register(function: Callable[[torch.Generator, int], Inputs]) -> Any:
        def inputs(seed: int) -> Inputs:
            return function(torch.Generator().manual_seed(seed), seed)

        CASES.append(Case(name, make, inputs, dynamic_shapes))
        return function

    return register


class Of(nn.Module):
    """A function as a module, with submodules by name."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)
