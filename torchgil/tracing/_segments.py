"""A thread's states over time, nine bytes each: of a long trace there are millions.

As tuples they would take some 150 bytes each, and to free them all would hold the GIL for long.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import overload

from torchgil.tracing._recording import Segment, State

__all__ = ["Segments"]

_STATES = tuple(State)  # a state's number is its index


class Segments(Sequence[Segment]):
    """Start, end and state of each stretch of time; adjoining, in order, no two alike next to each other.

    Attributes:
        bounds: Where each begins, and last where the last one ends; empty where there is none.
        states: The number of each one's state.
    """

    __slots__ = ("bounds", "states")

    def __init__(self) -> None:
        self.bounds = array("q")
        self.states = bytearray()

    def add(self, start_ns: int, state: State) -> None:
        """From here on it is this state. Times never decrease."""
        bounds, states = self.bounds, self.states
        if bounds and bounds[-1] == start_ns:  # the one before took no time
            bounds.pop()
            states.pop()
        if not states or states[-1] != state:
            bounds.append(start_ns)
            states.append(state)

    def close(self, end_ns: int) -> Segments:
        """Nothing follows."""
        if self.bounds and self.bounds[-1] == end_ns:
            self.states.pop()
        elif self.bounds:
            self.bounds.append(end_ns)
        if not self.states:
            del self.bounds[:]
        return self

    def at(self, time_ns: int) -> int:
        """The index of the one that a time lies in; the first, or the last, where it lies in none."""
        return min(max(bisect_right(self.bounds, time_ns) - 1, 0), max(len(self.states) - 1, 0))

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[Segment]:
        return zip(
            self.bounds, islice(self.bounds, 1, None), map(_STATES.__getitem__, self.states), strict=False
        )

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> list[Segment]: ...
    def __getitem__(self, index: int | slice) -> Segment | list[Segment]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError("no such segment")
        return self.bounds[i], self.bounds[i + 1], _STATES[self.states[i]]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Segments | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Segments({list(self)})"
