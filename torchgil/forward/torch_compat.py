"""Where the releases of torch differ, 2.9 to 2.15, as far as this wing minds: here and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree

__all__ = ["children", "refusal_of"]


def children(spec: pytree.TreeSpec) -> list[Any]:
    """The structures inside a structure: an attribute in torch 2.9, which later ones deprecate."""
    if hasattr(pytree.TreeSpec, "children"):
        return spec.children()
    return spec.children_specs


def refusal_of(error: Exception) -> str | None:
    """What to tell the user of an export that this release of torch cannot make and a later one can."""
    if "self._flat_weights[" in str(error):
        return (
            f"torch {torch.__version__} does not export an LSTM, GRU or RNN that is the whole model; torch "
            "2.13 does. Or call it from the forward of a module of your own"
        )
    return None
