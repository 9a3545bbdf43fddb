"""What is said of many measured values."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["quantile"]


def quantile(values: Iterable[float], q: float) -> float:
    """The smallest of `values` that a share `q` of them at least does not exceed (nearest rank), 0.0 of none.

    Example:
        >>> quantile([4, 1, 3, 2], 0.5), quantile([4, 1, 3, 2], 0.99), quantile([], 0.5)
        (2, 4, 0.0)
    """
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]
