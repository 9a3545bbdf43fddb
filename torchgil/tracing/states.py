"""From a recording's events to each thread's states over time. Pure: data in, data out."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from torchgil.tracing.recording import STARTS, Kind, Recording, Segment, State, ThreadRecording

__all__ = ["since", "states_of"]

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
    state = thread.at_start
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


def since(recording: Recording, start_ns: int) -> Recording:
    """The recording as if it had started at this time, with what was known by then."""
    if start_ns <= recording.start_ns:
        return recording
    threads = tuple(_since(thread, recording, start_ns) for thread in recording.threads)
    return replace(recording, start_ns=start_ns, threads=threads)


def _since(thread: ThreadRecording, recording: Recording, start_ns: int) -> ThreadRecording:
    cut = bisect_left(thread.times_ns, start_ns)
    if cut == 0:
        return thread
    known, state = True, thread.at_start
    open_ops: list[tuple[int, int]] = []  # kind and name
    collecting: list[tuple[int, int]] = []  # likewise, one at most
    for kind, name in zip(thread.kinds[:cut], thread.names[:cut], strict=True):
        if kind == Kind.THREAD_END:
            known, state = False, None
        elif kind in _GIL_KINDS and not (kind == Kind.REQUEST and state is State.PREEMPTED):
            state = _NEXT[_GIL_KINDS[kind]]
        elif kind in STARTS:
            open_ops.append((kind, name))
        elif kind == Kind.COLLECTION_START:
            collecting = [(kind, name)]
        elif kind == Kind.COLLECTION_END:
            collecting = []
        elif kind == Kind.OP_END and open_ops:
            at = len(open_ops) - 1
            while name and at >= 0 and recording.name_at(open_ops[at][1]) != recording.name_at(name):
                at -= 1
            if at >= 0:
                del open_ops[at:]
    carried = open_ops + collecting
    return replace(
        thread,
        times_ns=[start_ns] * len(carried) + list(thread.times_ns[cut:]),
        kinds=[kind for kind, _ in carried] + list(thread.kinds[cut:]),
        names=[name for _, name in carried] + list(thread.names[cut:]),
        known_at_start=known,
        at_start=state,
    )


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
