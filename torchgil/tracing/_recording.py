"""What a trace recorded: each thread's events, as data."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from torchgil.tracing._pieces import joined

__all__ = [
    "HELD_STARTS",
    "SCOPE_STARTS",
    "STARTS",
    "Kind",
    "OpStack",
    "OpenOp",
    "Recording",
    "Segment",
    "State",
    "ThreadRecording",
]


class Kind(IntEnum):
    """What an event says; the values are those of csrc/gil/trace/event_log.h, and of saved reports."""

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
    COLLECTION_START = 12  # of garbage; with its generation in place of a name
    COLLECTION_END = 13


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
    names: Sequence[int]  # of ops: offsets for Recording.name_at(); of collections: the generation
    known_at_start: bool  # a Python thread that existed when the trace started
    at_start: State | None = None  # where it is known; else its first event tells

    @classmethod
    def from_bytes(
        cls, ident: int, native_id: int, name: str, pieces: Iterable[bytes], known_at_start: bool
    ) -> ThreadRecording:
        """From pairs of int64, in pieces: the time in ns, and the kind with the name's offset above it."""
        times_ns, kinds, names = array("q"), bytearray(), array("q")
        for piece in pieces:
            pairs = array("q", piece)
            times_ns.extend(pairs[::2])
            data = pairs[1::2]
            kinds.extend(value & 0xFF for value in data)
            names.extend(value >> 8 for value in data)
        return cls(ident, native_id, name, times_ns, kinds, names, known_at_start)

    def ended(self) -> ThreadRecording:
        """The same with its end marked, where its last release was seen and the end was not."""
        if not self.kinds or self.kinds[-1] not in (Kind.RELEASE, Kind.FORCED_RELEASE):
            return self
        return replace(
            self,
            times_ns=joined([], self.times_ns) + array("q", self.times_ns[-1:]),
            kinds=bytes(self.kinds) + bytes([Kind.THREAD_END]),
            names=joined([], self.names) + array("q", [0]),
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


_KNOWN_NAMES = 1 << 12  # that a stack remembers: to free them all at once holds the GIL


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
            if len(self._names) == _KNOWN_NAMES:
                self._names.clear()
            name = self._names[offset] = self._recording.name_at(offset)
        return name
