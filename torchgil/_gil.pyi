"""torchgil._gil, the extension that knows no torch. tests/test_stub.py compares it with the built module."""

from collections.abc import Callable
from threading import Thread
from typing import Any, TypedDict

functions: Any  # a capsule: csrc/gil/functions.h

class PriorityBlocks:
    """A context manager; its thread has priority inside."""

    def __init__(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

def priority_unavailable() -> str | None: ...
def has_priority() -> bool: ...
def priority_sees_own_releases() -> bool: ...
def priority_answers() -> int: ...
def priority_owed_waits() -> int: ...
def priority_turns_of_others() -> int: ...

class _TraceStart(TypedDict):
    entry_points: bool
    lock: bool
    slots: int
    missing: str
    start_ns: int

class _TraceStop(TypedDict):
    start_ns: int
    stop_ns: int
    complete_from_ns: int
    complete_until_ns: int
    dropped: int
    unix_offset_ns: int
    names: bytes
    threads: list[tuple[int, int, str, list[bytes], int]]  # ident, native id, name, events, dropped
    missed_objects: list[str]
    waiting: list[int]  # native ids of threads that ask for the GIL at the stop
    all_collections_seen: bool  # False: gc.callbacks was changed meanwhile

def trace_start(
    max_events: int,
    gil: bool,
    lock: bool,
    ops: bool = True,
    newest: bool = False,
    into: _TraceStart | None = None,  # an empty one, to be filled as well
) -> _TraceStart: ...
def trace_stop(into: _TraceStop | None = None) -> _TraceStop: ...
def thread_idents() -> set[int]: ...
def trace_running() -> bool: ...
def trace_mark() -> None: ...
def trace_forget() -> None: ...

# Duration, queued, thread's name and ident, exact, frames, and collections: how many, their time, the longest
# one's, its generation.
_LongHold = tuple[
    float, float, str, int, bool, list[tuple[str, int, str]], tuple[int, float, float, int], bool
]

# A long hold, what its thread did, of each thread that waited its name, ident and frames, and the shared
# objects on the native stack.
_Hang = tuple[_LongHold, str, list[tuple[str, int, list[tuple[str, int, str]]]] | None, list[str]]

class Prober:
    """Finds who holds the GIL long, from two native threads, one of which all watchers share."""

    def __init__(
        self,
        *,
        threshold_s: float,
        mean_gap_s: float,
        look_period_s: float,
        hang_s: float,  # 0: there are no hangs
        exit_after_s: float,  # 0: the process goes on
        output: int,  # the file descriptor that hangs are written to
        threads: dict[int, Thread],
        sinks: list[Callable[[_LongHold], None]],
        hang_sinks: list[Callable[[_Hang], None]],
        totals: list[float],  # holds, their seconds, hangs
    ) -> None: ...
    def stop(self) -> None: ...
    def thread_begins(self, name: str) -> bool: ...
    def thread_ends(self, name: str) -> None: ...  # the calling one
    @property
    def knocks(self) -> int: ...
    @property
    def holding_s(self) -> float: ...

def can_read_frozen_stacks() -> bool: ...

# Looks, seconds, and by thread: looks that found it holding, and of these those amid a garbage collection.
_Looks = tuple[int, float, list[tuple[str | None, int, int]]]

class Monitor:
    """Counts who holds the GIL, from the native thread that all watchers share."""

    def __init__(self, interval_s: float, kept: int, threads: dict[int, Thread]) -> None: ...
    def stop(self) -> None: ...
    def take(self) -> _Looks: ...
    def last(self, seconds: float) -> _Looks: ...
    def reset(self) -> None: ...
    def thread_begins(self, name: str) -> bool: ...  # the calling one; False: it is known
    def thread_ends(self, name: str) -> None: ...

def leave_block(self: Any, *args: object) -> None: ...  # an __exit__
def gil_holder_known() -> bool: ...
def wakeup_latencies(samples: int) -> list[float]: ...
