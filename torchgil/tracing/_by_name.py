"""What a trace says of ops by their names, as columns of numbers.

A program that marks each step with a block of its own name gives a trace as many names as steps. As many
objects would set off collections of all that the program has, and to free them at once would hold the GIL for
long. So there is an `OpReport` while somebody looks at it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from torchgil.tracing._figures import LONG_HOLD_S, OpReport, Verdict, verdict_of
from torchgil.tracing._pieces import ordered
from torchgil.tracing._recording import Recording, State

__all__ = ["CALLS", "CALLS_HELD", "LONGEST_HOLD", "USER_SCOPE", "WALL", "OpReports", "Rows"]

_NS = 1e-9

# A row's fields, after the time in each state.
CALLS, CALLS_HELD, USER_SCOPE, WALL, LONGEST_HOLD = range(len(State), len(State) + 5)
_FIELDS = len(State) + 5
_ZEROS = array("q", bytes(8 * _FIELDS))


class Rows:
    """A row of numbers per name, one behind the other."""

    def __init__(self) -> None:
        self.numbers = array("q")
        self.offsets = array("q")  # of each one's name in the recording's table
        # Many small tables: one that has to grow, or is freed, does all of that in one call.
        self._tables: list[dict[str, int]] = [{} for _ in range(256)]

    def of(self, name: str, offset: int) -> int:
        """The index at which the name's row begins; of a new one all is 0."""
        table = self._tables[hash(name) & 255]
        at = table.get(name)
        if at is None:
            at = table[name] = len(self.numbers)
            self.numbers.extend(_ZEROS)
            self.offsets.append(offset)
        return at

    def offset(self, at: int) -> int:
        return self.offsets[at // _FIELDS]

    def put(self, op: OpReport, offset: int) -> None:
        """Adds the row that `OpReports` reads as this one."""
        times = {
            State.FREE: op.free_s,
            State.WAIT: op.wait_s,
            State.HELD: op.held_s,
            State.PREEMPTED: op.preempted_s,
            WALL: op.wall_s,
            LONGEST_HOLD: op.longest_hold_s,
        }
        at = len(self.numbers)
        self.numbers.extend(_ZEROS)
        self.offsets.append(offset)
        for field, seconds in times.items():
            self.numbers[at + field] = round(seconds / _NS)
        self.numbers[at + CALLS], self.numbers[at + CALLS_HELD] = op.calls, op.calls_held
        self.numbers[at + USER_SCOPE] = op.user_scope

    def forget_names(self) -> None:
        """Frees the names, one table after the other."""
        for table in self._tables:
            table.clear()


class OpReports(Sequence[OpReport]):
    """The report on each op, made when it is read; those that hurt most come first."""

    __slots__ = ("_offsets", "_order", "_origins", "_recording", "_sums")

    def __init__(self, recording: Recording, rows: Rows, origin_of: Callable[[str], str | None]) -> None:
        self._recording = recording
        self._offsets = rows.offsets
        self._sums = rows.numbers
        self._origins: dict[int, str] = {}
        for at in range(len(self._offsets)):
            if self._sums[at * _FIELDS + LONGEST_HOLD] * _NS >= LONG_HOLD_S:
                origin = origin_of(self._name(at))
                if origin:
                    self._origins[at] = origin
        self._order = array("q")
        # A generator: the interpreter may switch between its items.
        self._order.extend(at for at in ordered(range(len(self._offsets)), self._hurts))

    def _hurts(self, at: int) -> tuple[int, int, str]:
        row = self._sums[at * _FIELDS : (at + 1) * _FIELDS]
        return -(row[State.HELD] + row[State.WAIT]), -row[WALL], self._name(at)

    def _name(self, at: int) -> str:
        return self._recording.name_at(self._offsets[at])

    def _read(self, at: int) -> OpReport:
        row = self._sums[at * _FIELDS : (at + 1) * _FIELDS]
        verdict: Verdict
        if self._recording.gil_seen:
            verdict = verdict_of(row[State.FREE], row[WALL])
        elif not self._recording.has_gil:
            verdict = "no GIL"
        else:  # all that is known is how it was entered
            held = row[CALLS_HELD]
            verdict = "releases" if held == 0 else "holds" if held == row[CALLS] else "partly"
        return OpReport(
            name=self._name(at),
            calls=row[CALLS],
            calls_held=row[CALLS_HELD],
            wall_s=row[WALL] * _NS,
            free_s=row[State.FREE] * _NS,
            held_s=row[State.HELD] * _NS,
            wait_s=row[State.WAIT] * _NS,
            preempted_s=row[State.PREEMPTED] * _NS,
            longest_hold_s=row[LONGEST_HOLD] * _NS,
            verdict=verdict,
            user_scope=bool(row[USER_SCOPE]),
            origin=self._origins.get(at),
        )

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[OpReport]:
        return map(self._read, self._order)

    @overload
    def __getitem__(self, index: int) -> OpReport: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[OpReport, ...]: ...
    def __getitem__(self, index: int | slice) -> OpReport | tuple[OpReport, ...]:
        if isinstance(index, slice):
            return tuple(self._read(at) for at in self._order[index])
        return self._read(self._order[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OpReports | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))
