"""Threads against processes on the user's own model."""

from __future__ import annotations

from torchgil import _torch_half as _torch_half  # first: where there is no torch that fits, it says so
from torchgil.compare._builtin import transformer
from torchgil.compare._contenders import Contender, contenders
from torchgil.compare._document import document
from torchgil.compare._measure import Figures
from torchgil.compare._picture import plot
from torchgil.compare._recommendation import best, recommend
from torchgil.compare._run import NotLoadedError, Result, compare
from torchgil.compare._subject import BUILTIN
from torchgil.compare._table import comparison_table, failures

__all__ = [
    "BUILTIN",
    "Contender",
    "Figures",
    "NotLoadedError",
    "Result",
    "best",
    "compare",
    "comparison_table",
    "contenders",
    "document",
    "failures",
    "plot",
    "recommend",
    "transformer",
]
