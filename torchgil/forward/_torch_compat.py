"""Where the releases of torch differ, 2.9 to 2.15, as far as this wing minds: here and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree

from torchgil._versions import series

__all__ = ["LOADS_FOLDERS", "children", "refusal_of"]

#: Whether the loader of packages takes one that is unpacked already. Given an archive it unpacks that, and
#: leaves what it unpacked behind where the load then fails.
LOADS_FOLDERS = series(torch.__version__) >= (2, 13)


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
