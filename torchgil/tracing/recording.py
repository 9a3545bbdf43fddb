"""What a trace recorded, and how it is turned into each thread's states. Pure: data in, data out."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

__all__ = [
    "HELD_STARTS",
    "SCOPE_STARTS",
    "STARTS",
    "Kind",
    "Recording",
    "Segment",
    "State",
    "ThreadRecording",
    "states_of",
]


class Kind(IntEnum):
    """What an event says; the values are those of csrc/tracing/event_log.h."""

    RELEASE = 1
    FORCED_RELEASE = 2
    REQUEST = 3
    ACQUIRE = 4
    OP_START = 5
    OP_START_HELD = 6
    OP_END = 7  # of the innermost open op; with a name, of the innermost of that name
    MARK = 8
    THREAD_END = 9
    SCOPE_START = 10  # as OP_START, of a user's record_function
    SCOPE_START_HELD = 11


STARTS = frozenset({Kind.OP_START, Kind.OP_START_HELD, Kind.SCOPE_START, Kind.SCOPE_START_HELD})
HELD_STARTS = frozenset({Kind.OP_START_HELD, Kind.SCOPE_START_HELD})
SCOPE_STARTS = frozenset({Kind.SCOPE_START, Kind.SCOPE_START_HELD})


class State(IntEnum):
    """What a thread is to the GIL at one moment."""

    FREE = 0  # inside a release window
    WAIT = 1  # asks for the GIL back
    HELD = 2
    PREEMPTED = 3  # wants to run, but the interpreter switched to another thread


Segment = tuple[int, int, State]  # start_ns, end_ns, state; adjoining, in order


@dataclass(frozen=True, slots=True)
class ThreadRecording:
    """One thread's events, in the order of time."""

    ident: int
    native_id: int
    name: str
    times_ns: Sequence[int]
    kinds: Sequence[int]
    names: Sequence[int]  # of ops: offsets for Recording.name_at()
    known_at_start: bool  # a Python thread that existed when the trace started

    @classmethod
    def from_bytes(
        cls, ident: int, native_id: int, name: str, events: bytes, known_at_start: bool
    ) -> ThreadRecording:
        """From pairs of int64: the time in ns, and the kind with the name's offset above it."""
        pairs = array("q", events)
        data = pairs[1::2]
        return cls(
            ident,
            native_id,
            name,
            pairs[::2],
            bytes(value & 0xFF for value in data),
            array("q", [value >> 8 for value in data]),
            known_at_start,
        )

    def ended(self) -> ThreadRecording:
        """The same with its end marked, where its last release was seen and the end was not."""
        if not self.kinds or self.kinds[-1] not in (Kind.RELEASE, Kind.FORCED_RELEASE):
            return self
        return replace(
            self,
            times_ns=[*self.times_ns, self.times_ns[-1]],
            kinds=[*self.kinds, Kind.THREAD_END],
            names=[*self.names, 0],
        )


@dataclass(frozen=True, slots=True)
class Recording:
    """All that one trace recorded."""

    pid: int
    start_ns: int  # on the monotonic clock, as all times here
    stop_ns: int
    complete_until_ns: int  # the first event dropped, or stop_ns
    dropped: int
    unix_offset_ns: int  # add it to get the wall clock's time
    threads: tuple[ThreadRecording, ...]
    name_table: bytes = b"\0"
    gil_seen: bool = True  # False: only op events were recorded
    has_gil: bool = True  # False on a free-threaded build
    notes: tuple[str, ...] = ()

    def name_at(self, offset: int) -> str:
        """The name that an event's offset stands for; "" for 0."""
        end = self.name_table.find(b"\0", offset)
        return self.name_table[offset:end].decode(errors="replace")

    @property
    def events(self) -> int:
        return sum(len(thread.times_ns) for thread in self.threads)


@dataclass(frozen=True, slots=True)
class OpenOp:
    """An op that has started."""

    name: str
    start_ns: int
    held: bool  # the GIL was held by its thread then
    user_scope: bool


class OpStack:
    """The open ops of one thread, the innermost last."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._names: dict[int, str] = {}
        self.ops: list[OpenOp] = []

    def start(self, time_ns: int, kind: int, offset: int) -> OpenOp:
        op = OpenOp(self._name(offset), time_ns, kind in HELD_STARTS, kind in SCOPE_STARTS)
        self.ops.append(op)
        return op

    def end(self, offset: int) -> OpenOp | None:
        """The op that ends; None if its start was not seen here."""
        name = self._name(offset)
        if not self.ops or (name and all(op.name != name for op in self.ops)):
            return None
        while name and self.ops[-1].name != name:
            self.ops.pop()  # these end on another thread
        return self.ops.pop()

    def _name(self, offset: int) -> str:
        name = self._names.get(offset)
        if name is None:
            name = self._names[offset] = self._recording.name_at(offset)
        return name


_NEXT = {
    Kind.RELEASE: State.FREE,
    Kind.FORCED_RELEASE: State.PREEMPTED,
    Kind.REQUEST: State.WAIT,
    Kind.ACQUIRE: State.HELD,
}
# What the thread must have been before its first event.
_BEFORE = {
    Kind.RELEASE: State.HELD,
    Kind.FORCED_RELEASE: State.HELD,
    Kind.REQUEST: State.FREE,
    Kind.ACQUIRE: State.WAIT,
}


def states_of(recording: Recording) -> list[list[Segment]]:
    """Each thread's states over time, in the order of `recording.threads`.

    At most one thread holds the GIL. Where two claim to, because a forced switch was
    not seen, the one that acquired last holds it and the other was preempted.

    Returns:
        Per thread its segments, adjoining and in order; empty for a thread without time.
    """
    claims = [_claimed(thread, recording) for thread in recording.threads]
    return _resolve(claims)


def _claimed(thread: ThreadRecording, recording: Recording) -> list[Segment]:
    end_ns = recording.complete_until_ns
    since = recording.start_ns
    if not thread.known_at_start:
        if not thread.times_ns:
            return []
        since = max(since, thread.times_ns[0])
    state: State | None = None
    segments: list[Segment] = []
    for time_ns, kind in _gil_events(thread):
        if time_ns >= end_ns:
            break
        if state is None:
            state = _BEFORE.get(kind, State.FREE)
        if kind == Kind.THREAD_END:
            end_ns = time_ns
            state = State.FREE if state is State.PREEMPTED else state  # its last release
            break
        if kind == Kind.REQUEST and state is State.PREEMPTED:
            continue  # switched out, it asks at once: all of it is one wait to run again
        if time_ns > since:
            segments.append((since, time_ns, state))
            since = time_ns
        state = _NEXT[kind]
    if end_ns > since:
        segments.append((since, end_ns, State.FREE if state is None else state))
    return segments


# Calling the enumeration for each event would take longer than all else that is done with it.
_GIL_KINDS = {
    int(kind): kind
    for kind in (Kind.RELEASE, Kind.FORCED_RELEASE, Kind.REQUEST, Kind.ACQUIRE, Kind.THREAD_END)
}


def _gil_events(thread: ThreadRecording) -> Iterator[tuple[int, Kind]]:
    for time_ns, number in zip(thread.times_ns, thread.kinds, strict=True):
        kind = _GIL_KINDS.get(number)
        if kind is not None:
            yield time_ns, kind


def _resolve(claims: list[list[Segment]]) -> list[list[Segment]]:
    """Turns what was held while another held it into preempted."""
    held = sorted(
        (start, end, thread)
        for thread, segments in enumerate(claims)
        for start, end, state in segments
        if state is State.HELD
    )
    if all(a[1] <= b[0] for a, b in pairwise(held)):
        return claims
    pieces: list[list[Segment]] = [[] for _ in claims]
    for thread, start, end, state in _holders(held):
        pieces[thread].append((start, end, state))
    return [
        _merge([s for s in segments if s[2] is not State.HELD] + pieces[thread])
        for thread, segments in enumerate(claims)
    ]


def _holders(held: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int, State]]:
    """Splits overlapping claims (start, end, thread) at every change of the last to acquire."""
    # An end sorts before a start at the same time: the GIL was handed over.
    boundaries = sorted(
        [(start, 1, claim) for claim, (start, _, _) in enumerate(held)]
        + [(end, 0, claim) for claim, (_, end, _) in enumerate(held)]
    )
    since: dict[int, int] = {}  # open claims, and when their current piece began
    latest: list[int] = []  # heap of open claims, the last to acquire first

    def top() -> int | None:
        while latest and -latest[0] not in since:
            heapq.heappop(latest)
        return -latest[0] if latest else None

    for time_ns, starts, claim in boundaries:
        holder = top()
        if starts:
            if holder is not None:
                yield held[holder][2], since[holder], time_ns, State.HELD
                since[holder] = time_ns
            since[claim] = time_ns
            heapq.heappush(latest, -claim)  # claims are sorted by start
        else:
            state = State.HELD if claim == holder else State.PREEMPTED
            yield held[claim][2], since.pop(claim), time_ns, state
            successor = top()
            if state is State.HELD and successor is not None:
                yield held[successor][2], since[successor], time_ns, State.PREEMPTED
                since[successor] = time_ns


def _merge(segments: list[Segment]) -> list[Segment]:
    merged: list[Segment] = []
    for start, end, state in sorted(s for s in segments if s[1] > s[0]):
        if merged and merged[-1][2] is state and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end, state)
        else:
            merged.append((start, end, state))
    return merged
