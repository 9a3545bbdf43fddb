"""From a recording to its numbers: per thread and per op. Pure: data in, data out."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torchgil.tracing._by_name import CALLS, CALLS_HELD, LONGEST_HOLD, USER_SCOPE, WALL, OpReports, Rows
from torchgil.tracing._collecting import collections_of, together
from torchgil.tracing._figures import Figures, Span, ThreadReport
from torchgil.tracing._holding import Holds, holders_meanwhile
from torchgil.tracing._pieces import ordered
from torchgil.tracing._recording import (
    STARTS,
    Kind,
    OpenOp,
    OpStack,
    Recording,
    State,
    ThreadRecording,
)
from torchgil.tracing._segments import Segments
from torchgil.tracing._states import states_of

__all__ = ["figures_of", "span_of"]

_NS = 1e-9


def figures_of(recording: Recording, origin_of: Callable[[str], str | None]) -> Figures:
    """Turns events into numbers; of an op that held the GIL for long, `origin_of` says where it is from."""
    segments = states_of(recording)
    ops = _Ops(recording)
    holds = Holds.of(segments)
    threads = []
    for thread, states in zip(recording.threads, segments, strict=True):
        waits_after = ops.add_thread(thread, states)
        if not states:
            continue
        span = span_of(thread, states, states[0][0], states[-1][1])
        threads.append(
            ThreadReport(
                name=thread.name,
                ident=thread.ident,
                native_id=thread.native_id,
                **{name: getattr(span, name) for name in Span.__slots__},
                waits_after=waits_after,
                waits_for=holders_meanwhile(states, holds, recording.threads),
            )
        )
    ops.rows.forget_names()
    notes = list(recording.notes)
    wall_s = (recording.stop_ns - recording.start_ns) * _NS
    covered_s = (recording.complete_until_ns - recording.start_ns) * _NS
    if recording.dropped:
        notes.append(
            f"the buffer was full after {covered_s:.6f} s of {wall_s:.6f} s: {recording.dropped} events were "
            "dropped, and the numbers speak of the time before; raise max_events, or trace less"
        )
    return Figures(
        wall_s=wall_s,
        covered_s=covered_s,
        events=recording.events,
        dropped=recording.dropped,
        ops=OpReports(recording, ops.rows, origin_of),
        threads=tuple(sorted(threads, key=lambda t: -(t.wait_s + t.preempted_s + t.held_s))),
        notes=tuple(notes),
        collections=together(thread.collections for thread in threads),
        recording=recording,
        segments=tuple(segments),
    )


def span_of(thread: ThreadRecording, segments: Segments, start_ns: int, end_ns: int) -> Span:
    """What one thread did between two times of the monotonic clock."""
    totals = [0, 0, 0, 0]
    longest = [0, 0, 0, 0]
    for at in range(segments.at(start_ns), len(segments)):
        start, end, state = segments[at]
        if start >= end_ns:
            break
        length = min(end, end_ns) - max(start, start_ns)
        if length > 0:
            totals[state] += length
            longest[state] = max(longest[state], length)
    return Span(
        wall_s=sum(totals) * _NS,
        free_s=totals[State.FREE] * _NS,
        held_s=totals[State.HELD] * _NS,
        wait_s=totals[State.WAIT] * _NS,
        preempted_s=totals[State.PREEMPTED] * _NS,
        releases=_count_windows(thread, start_ns, end_ns),
        longest_hold_s=longest[State.HELD] * _NS,
        longest_wait_s=longest[State.WAIT] * _NS,
        collections=collections_of(thread, segments, start_ns, end_ns),
    )


def _count_windows(thread: ThreadRecording, start_ns: int, end_ns: int) -> int:
    """Release windows opened; the last release of a thread that ends opens none."""
    count = 0
    opened = False
    for time_ns, kind in zip(thread.times_ns, thread.kinds, strict=True):
        if opened and kind == Kind.THREAD_END:
            count -= 1
        opened = kind == Kind.RELEASE and start_ns <= time_ns < end_ns
        count += opened
    return count


_Start = tuple[int, list[int], int]  # of an op: its row, the clock, and the number of the segment


class _Clock:
    """Cumulative time per state of one thread, read at times that never decrease."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.index = 0  # of the segment that the last time read lies in
        self._before = [0, 0, 0, 0]  # of the segments before that one

    def at(self, time_ns: int) -> list[int]:
        bounds, states, index = self.segments.bounds, self.segments.states, self.index
        while index < len(states) and bounds[index + 1] <= time_ns:
            self._before[states[index]] += bounds[index + 1] - bounds[index]
            index += 1
        self.index = index
        now = self._before.copy()
        if index < len(states) and bounds[index] < time_ns:
            now[states[index]] += time_ns - bounds[index]
        return now


class _Ops:
    """Sums over ops, thread by thread."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.rows = Rows()

    def add_thread(self, thread: ThreadRecording, segments: Segments) -> dict[str, float]:
        """Adds one thread's ops; returns the time it waited in windows, by the op that ran in them."""
        clock = _Clock(segments)
        stack = OpStack(self._recording)
        starts: list[_Start] = []  # of the open ops
        ends_ns, ended_rows = array("q"), array("q")  # of the outermost ops
        limit = self._recording.complete_until_ns
        sums = self.rows.numbers
        for time_ns, kind, offset in zip(thread.times_ns, thread.kinds, thread.names, strict=True):
            if time_ns >= limit:
                break
            if kind in STARTS:
                op = stack.start(time_ns, kind, offset)
                row = self.rows.of(op.name, offset)
                sums[row + CALLS] += 1
                sums[row + CALLS_HELD] += op.held
                sums[row + USER_SCOPE] = op.user_scope
                starts.append((row, clock.at(time_ns), clock.index))
            elif kind == Kind.OP_END:
                ended = stack.end(offset)
                if ended:
                    start = starts[len(stack.ops)]
                    self._close(ended, stack, start, time_ns, clock)
                    del starts[len(stack.ops) :]
                    if not stack.ops:
                        ends_ns.append(time_ns)
                        ended_rows.append(start[0])
        last_ns = segments.bounds[-1] if segments else limit
        while stack.ops:  # still running when the trace, or its buffer, ended
            ended = stack.ops.pop()
            self._close(ended, stack, starts.pop(), last_ns, clock)
        return self._attribute_waits(ends_ns, ended_rows, segments)

    def _close(self, op: OpenOp, outer: OpStack, start: _Start, time_ns: int, clock: _Clock) -> None:
        if any(o.name == op.name for o in outer.ops):
            return  # inside a call of itself, which counts this time
        row, before, first = start
        sums = self.rows.numbers
        sums[row + WALL] += time_ns - op.start_ns
        for state, (now, then) in enumerate(zip(clock.at(time_ns), before, strict=True)):
            sums[row + state] += now - then
        bounds, states = clock.segments.bounds, clock.segments.states
        for at in range(first, min(clock.index + 1, len(states))):
            if states[at] == State.HELD:
                held = min(bounds[at + 1], time_ns) - max(bounds[at], op.start_ns)
                sums[row + LONGEST_HOLD] = max(sums[row + LONGEST_HOLD], held)

    def _attribute_waits(
        self, ends_ns: Sequence[int], ended_rows: Sequence[int], segments: Segments
    ) -> dict[str, float]:
        """Gives each wait to the outermost op that ended last in the window before it."""
        waits: defaultdict[int, int] = defaultdict(int)  # by row; -1: to no op
        next_end = 0
        for before, (start, end, state) in pairwise(segments):
            if state is not State.WAIT or before[2] is not State.FREE:
                continue
            row = -1
            while next_end < len(ends_ns) and ends_ns[next_end] <= start:
                if ends_ns[next_end] >= before[0]:
                    row = ended_rows[next_end]
                next_end += 1
            if row >= 0:
                self.rows.numbers[row + State.WAIT] += end - start
            waits[row] += end - start
        return {
            self._recording.name_at(self.rows.offset(row)) if row >= 0 else "": ns * _NS
            for row, ns in ordered(waits.items(), key=lambda item: -item[1])
        }
