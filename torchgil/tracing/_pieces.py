"""Long sequences in pieces: one call into C holds the GIL until it has done all of it."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

__all__ = ["joined", "ordered"]

T = TypeVar("T")

_COPIED = 1 << 16  # numbers: what one call takes at a time
_SORTED = 1 << 12  # likewise, of what is compared by its key


def joined(head: Sequence[int], tail: Sequence[int], start: int = 0) -> array[int]:
    """Those of `head`, and those of `tail` from an index on, as compact as they come from a trace."""
    numbers = array("q", head)
    for begin in range(start, len(tail), _COPIED):
        numbers.extend(tail[begin : begin + _COPIED])
    return numbers


def ordered(items: Iterable[T], key: Callable[[T], Any]) -> Iterator[T]:
    """As `sorted` has them, in their order where the keys are equal."""
    every = iter(items)
    pieces = []
    while piece := list(islice(every, _SORTED)):
        piece.sort(key=key)
        pieces.append(piece)
    return heapq.merge(*pieces, key=key)
