"""A table of a page, and figures as its cells have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNSTABLE = "~"  # before a figure


def table(heads: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right; under it, what the mark in some cell means."""

    def line(cells: Sequence[str]) -> str:
        return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)

    names = heads.split("|")
    lines = [line([name.strip() for name in names]), "|---|" + "--:|" * (len(names) - 1), *map(line, rows)]
    if any(UNSTABLE in line for line in lines):
        lines += ["", f"{UNSTABLE}: unstable; the extremes, behind it, lie further apart than it is large."]
    return lines


def shown(figure: Mapping[str, float], factor: float, digits: str) -> str:
    """The median; one that is unstable is marked as such, and has its extremes behind it."""
    median, low, high = (f"{figure[key] * factor:{digits}}" for key in ("median", "min", "max"))
    if figure["max"] - figure["min"] <= abs(figure["median"]):
        return median
    return f"{UNSTABLE}{median} ({low} to {high})"


def milliseconds(figure: Mapping[str, float]) -> str:
    seconds = figure["median"]
    digits = ",.0f" if seconds >= 1 else ".3g" if seconds >= 1e-3 else ".3f"
    return f"{shown(figure, 1e3, digits)} ms"


def cell(figures: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    return shown(figures[key], factor, f".{digits}f") if key in figures else ""
