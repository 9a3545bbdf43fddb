"""`trace`: records who holds the GIL, on every thread of the process."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from torchgil._checks import flag, number, whole
from torchgil._copies import NotCopied
from torchgil._extension import of_op
from torchgil._gil_half import C
from torchgil._imports import unregistered
from torchgil.tracing._recording import Recording, State, ThreadRecording
from torchgil.tracing._report import Report, build_report
from torchgil.tracing._states import since

__all__ = ["Trace", "trace"]

_MAX_EVENTS = 1 << 32  # 64 GB of buffer: more is a mistake
_MAX_LAST_S = 1e9  # 32 years
_KEPT_THREADS = 4096  # whose names are known although they have ended, in a trace that keeps the newest


def has_gil() -> bool:
    """False on a free-threaded build that runs without its GIL."""
    enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return enabled is None or enabled()


class Trace(NotCopied):
    """A trace of the GIL; see `trace`. Use it as a context manager, once."""

    def __init__(
        self,
        *,
        max_events: int = 1_000_000,
        ops: bool = True,
        keep: Literal["oldest", "newest"] = "oldest",
        forced_switches: bool = True,
    ) -> None:
        wanted = "an integer from 1 to 2**32"
        max_events = whole("trace: max_events", max_events, 1, _MAX_EVENTS, wanted=wanted, kind=ValueError)
        if keep not in ("oldest", "newest"):
            raise ValueError(f"trace: keep must be 'oldest' or 'newest', got {keep!r}")
        self._max_events = max_events
        self._ops = flag("trace: ops", ops)
        self._newest = keep == "newest"
        self._lock_witness = flag("trace: forced_switches", forced_switches)
        self._pid = 0  # of the process that runs it; 0: not started
        self._runs = False
        self._stopping = threading.RLock()
        self._amid_stop = False
        self._ended: Any = {}  # what the extension recorded
        self._recording: Recording | None = None
        self._report: Report | None = None

    def start(self) -> Trace:
        """Begins to record, as the ``with`` block does."""
        if self._pid:
            raise RuntimeError("trace: a Trace records once; call torchgil.trace() again for another")
        has, known, pid = has_gil(), C.thread_idents(), os.getpid()
        names = _ThreadNames(_KEPT_THREADS if self._newest else None)
        begun: Any = {}
        try:
            C.trace_start(self._max_events, has, self._lock_witness, self._ops, self._newest, begun)
            self._start, self._has_gil, self._known, self._names = begun, has, known, names
            self._pid, self._runs = pid, True
            names.watch()
            if not self._runs:  # a signal handler, or another thread, has ended it amid this
                names.put_back()
            return self
        except BaseException:
            if begun:  # Ctrl-C, just after
                self._runs = False
                C.trace_stop()
                names.put_back()
            raise

    def __enter__(self) -> Trace:
        ran = self._runs
        try:
            return self.start()
        except BaseException:
            if self._runs and not ran:  # Ctrl-C, just after
                self.stop()
            raise

    __exit__ = C.leave_block  # calls stop(), and again where Ctrl-C came amid it

    def stop(self) -> None:
        """Ends recording, in any thread of the process that began it. Twice does no harm."""
        if os.getpid() != self._pid:
            return  # a fork's child leaves the block: the trace is its parent's
        with self._stopping:  # another thread returns when it has ended, too
            if self._recording is not None or self._amid_stop:
                return  # it was left before, or a signal handler comes amid it
            self._amid_stop = True
            try:
                self._recording = self._end()
            finally:
                self._amid_stop = False

    def _end(self) -> Recording | None:
        """What was recorded. After Ctrl-C it can be called again, and goes on; None after any other error."""
        self._names.unwatch()
        if self._runs:
            self._alive = C.thread_idents()  # now, for others run while the events are copied
            self._runs = False
            C.trace_stop(self._ended)
        stopped, alive = self._ended, self._alive
        if not stopped:
            return None
        notes = []
        gil_seen = self._start["entry_points"]
        if not self._has_gil:
            notes.append("this Python runs without a GIL: there is nothing to release, hold or wait for")
        elif self._start["missing"]:
            notes.append(self._start["missing"] + ("" if gil_seen else "; only ops were recorded"))
        if stopped["missed_objects"]:
            objects = ", ".join(stopped["missed_objects"])
            # With the lock watched, the GIL is seen to change hands, and not that they gave it away.
            seen = "their releases count as preempted" if self._start["lock"] else "their calls stayed unseen"
            notes.append(f"not redirected, (loaded during the trace?), so that {seen}: {objects}")
        if self._ops and (why := _ops_unseen()):
            notes.append(f"torch's ops were not recorded: {why}")
        if not stopped["all_collections_seen"]:
            notes.append("gc.callbacks was changed during the trace: not all garbage collections were seen")
        begin_ns, dropped = stopped["complete_from_ns"], stopped["dropped"]
        if self._newest and dropped:
            kept_s, wall_s = ((stopped["stop_ns"] - ns) * 1e-9 for ns in (begin_ns, stopped["start_ns"]))
            notes.append(f"the newest {kept_s:.6f} s of {wall_s:.6f} s: {dropped} older events were given up")
            dropped = 0
        recording = Recording(
            pid=self._pid,
            start_ns=stopped["start_ns"],
            stop_ns=stopped["stop_ns"],
            complete_until_ns=stopped["complete_until_ns"],
            dropped=dropped,
            unix_offset_ns=stopped["unix_offset_ns"],
            threads=self._threads(stopped["threads"], set(stopped["waiting"]), alive),
            name_table=stopped["names"],
            gil_seen=gil_seen,
            has_gil=self._has_gil,
            notes=tuple(notes),
        )
        return since(recording, begin_ns)

    def _threads(
        self, recorded: list[tuple[int, int, str, list[bytes], int]], waiting: set[int], alive: set[int]
    ) -> tuple[ThreadRecording, ...]:
        unseen = self._known.copy()
        threads = []
        for ident, native_id, kernel_name, events, _ in sorted(recorded, key=_first_time):
            # An ident is used again after its thread ended: the first to show it was there.
            known = ident in unseen
            unseen.discard(ident)
            name = self._names.of(ident, native_id, kernel_name)
            thread = ThreadRecording.from_bytes(ident, native_id, name, events, known)
            threads.append(thread if ident in alive else thread.ended())
        # No event at all: it sat in one window, or asked for the GIL, from before the start until the stop.
        for ident in sorted(unseen):
            native_id = self._names.native_id(ident)
            name = self._names.of(ident, native_id, "")
            state = State.WAIT if native_id in waiting else State.FREE
            threads.append(ThreadRecording(ident, native_id, name, (), b"", (), True, state))
        return tuple(threads)

    def report(self, *, last: float | None = None) -> Report:
        """The numbers, once the block is left.

        Args:
            last: Speak of so many seconds before the end only; of all where it was shorter.

        Raises:
            ValueError: last is no number above 0.
            RuntimeError: The trace has not ended yet, or this is a fork's child.
        """
        if last is not None:
            wanted = "seconds above 0, or None"
            last = number("report: last", last, math.ulp(0.0), _MAX_LAST_S, wanted=wanted, kind=ValueError)
        if self._recording is None:
            if self._pid and os.getpid() != self._pid:
                raise RuntimeError("trace: this process was forked inside the trace, which is its parent's")
            if self._pid and not self._runs:
                raise RuntimeError("trace: an error ended it, and there is no report")
            raise RuntimeError("trace: the report is ready when the `with` block has ended")
        if last is not None:
            start_ns = self._recording.stop_ns - int(last * 1e9)
            return build_report(since(self._recording, start_ns), of_op)
        if self._report is None:
            self._report = build_report(self._recording, of_op)
        return self._report


def trace(
    *,
    max_events: int = 1_000_000,
    ops: bool = True,
    keep: Literal["oldest", "newest"] = "oldest",
    forced_switches: bool = True,
) -> Trace:
    """Records each release, request and acquire of the GIL, and each torch op, on all threads.

    Exact, not sampled: the calls are redirected while the block runs, and put back
    after it. One trace at a time in a process.

    Args:
        max_events: Events kept, of 16 bytes each, for all threads together; an op call
            takes 5. What comes later is dropped, counted, and said in the report.
        ops: False records the GIL alone, which costs less.
        keep: ``"newest"`` lets the oldest events go where there is no room for new ones, so
            that a trace can run until something happens; the report is on what was kept.
        forced_switches: False does not look at the lock inside the interpreter: its
            forced switches are then inferred from who acquires next.

    Returns:
        A context manager; after the block its ``report()`` gives the numbers.

    Raises:
        ValueError: max_events is no integer from 1 to 2**32, or keep is something else.
        TypeError: ops or forced_switches is neither True nor False.
        RuntimeError: Another trace is running (on entry).

    >>> import torchgil
    >>> spin = torchgil.released.spin
    >>> with torchgil.trace() as t:
    ...     _ = spin(0.01)
    >>> me = t.report().threads[0]
    >>> me.name, me.releases, me.free_s > 0.009
    ('MainThread', 1, True)
    """
    return Trace(max_events=max_events, ops=ops, keep=keep, forced_switches=forced_switches)


def _ops_unseen() -> str | None:
    """Why ops of a torch that is loaded are not seen; None where they are, or there is no torch."""
    if "torch" not in sys.modules or "torchgil._torch" in sys.modules:
        return None
    return unregistered[-1] if unregistered else None  # none: the import of torch has not ended


class _ThreadNames:
    """Python's names of threads, of those too that start and end within the trace."""

    def __init__(self, kept: int | None) -> None:
        self._threads = deque(threading.enumerate(), kept)
        self._original: Callable[[threading.Thread], None] | None = None
        self._wrapper: Callable[[threading.Thread], None] | None = None

    def watch(self) -> None:
        """Once the trace runs: until then another one may, and have its own function in this place."""
        names, original, started = self, threading.Thread.start, self._threads
        self._original = original

        def start(self: threading.Thread) -> None:
            if names in _watching:
                started.append(self)
            original(self)

        _watching.append(self)  # first, so that a fork amid this finds it
        self._wrapper = start
        threading.Thread.start = start  # type: ignore[method-assign]

    def unwatch(self) -> None:
        self.put_back()
        threads = [*self._threads, *threading.enumerate()]
        main = threading.main_thread()
        self._by_native_id = {_attribute(t, "native_id"): str(_attribute(t, "name")) for t in threads}
        # In a fork's child threading has the parent's number for the main thread still; Linux, the process's.
        self._by_native_id[os.getpid()] = main.name
        self._native_ids = {_attribute(t, "ident"): _attribute(t, "native_id") for t in threads}

    def put_back(self) -> None:
        # Somebody who wrapped it after us calls ours, which does no harm.
        if self._original and threading.Thread.start is self._wrapper:
            threading.Thread.start = self._original  # type: ignore[assignment, method-assign]
        if self in _watching:
            _watching.remove(self)

    def of(self, ident: int, native_id: int, kernel_name: str) -> str:
        name = self._by_native_id.get(native_id)
        if name is None:
            return f"{kernel_name or 'thread'} {native_id or ident}"
        return name

    def native_id(self, ident: int) -> int:
        return self._native_ids.get(ident) or 0


def _attribute(thread: threading.Thread, name: str) -> Any:
    """The thread's, or where a subclass has one of its own that raises, what `threading` keeps it as."""
    try:
        return getattr(thread, name)
    except Exception:
        return getattr(thread, f"_{name}", None)  # none where Thread.__init__ was not called


def _first_time(recorded: tuple[int, int, str, list[bytes], int]) -> int:
    return int.from_bytes(recorded[3][0][:8], sys.byteorder) if recorded[3] else 0


os.register_at_fork(after_in_child=C.trace_forget)


_watching: list[_ThreadNames] = []  # one at most: there is one trace at a time


def _put_back_all() -> None:
    """In the child of a fork: the trace is its parent's."""
    while _watching:
        _watching[-1].put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_put_back_all)
