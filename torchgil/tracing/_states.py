"""From a recording's events to each thread's states over time. Pure: data in, data out."""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise

from torchgil.tracing._pieces import joined
from torchgil.tracing._recording import STARTS, Kind, Recording, State, ThreadRecording
from torchgil.tracing._segments import Segments

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


def states_of(recording: Recording) -> list[Segments]:
    """Each thread's states over time, in the order of `recording.threads`.

    At most one thread holds the GIL. Where two claim to, because a forced switch was
    not seen, the one that acquired last holds it and the other was preempted.

    Returns:
        Per thread its segments, adjoining and in order; empty for a thread without time.
    """
    claims = [_claimed(thread, recording) for thread in recording.threads]
    return _resolve(claims)


def _claimed(thread: ThreadRecording, recording: Recording) -> Segments:
    segments = Segments()
    end_ns = recording.complete_until_ns
    since = recording.start_ns
    if not thread.known_at_start:
        if not thread.times_ns:
            return segments
        since = max(since, thread.times_ns[0])
    state = thread.at_start
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
            segments.add(since, state)
            since = time_ns
        state = _NEXT[kind]
    if end_ns > since:
        segments.add(since, State.FREE if state is None else state)
        since = end_ns
    return segments.close(since)


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
    for kind, name in zip(islice(thread.kinds, cut), islice(thread.names, cut), strict=True):
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
        times_ns=joined([start_ns] * len(carried), thread.times_ns, cut),
        kinds=bytes(kind for kind, _ in carried) + bytes(thread.kinds[cut:]),
        names=joined([name for _, name in carried], thread.names, cut),
        known_at_start=known,
        at_start=state,
    )


def _resolve(claims: list[Segments]) -> list[Segments]:
    """Turns what was held while another held it into preempted."""
    if all(a[1] <= b[0] for a, b in pairwise(_held(claims))):
        return claims
    # The pieces of each thread's claims, in order: where each begins, and the number of its state.
    starts, states = [array("q") for _ in claims], [bytearray() for _ in claims]
    for thread, start, state in _holders(_held(claims)):
        starts[thread].append(start)
        states[thread].append(state)
    return [
        _replaced(claimed, zip(starts[thread], states[thread], strict=True))
        for thread, claimed in enumerate(claims)
    ]


def _held(claims: list[Segments]) -> Iterator[tuple[int, int, int]]:
    """Start, end and thread of each claim to hold the GIL, by their start."""

    # Merged as they are read: to sort millions of them in one call would hold the GIL for seconds.
    def of(thread: int, segments: Segments) -> Iterator[tuple[int, int, int]]:
        return ((start, end, thread) for start, end, state in segments if state is State.HELD)

    return heapq.merge(*(of(thread, segments) for thread, segments in enumerate(claims)))


def _holders(held: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, State]]:
    """Splits claims at every change of the last to acquire: thread, start and state of each piece."""
    open_claims: dict[int, tuple[int, int]] = {}  # by number: the thread, and when its current piece began
    latest: list[int] = []  # heap of open claims, the last to acquire first: they are numbered by their start
    ends: list[tuple[int, int]] = []  # heap: when each ends

    def top() -> int | None:
        while latest and -latest[0] not in open_claims:
            heapq.heappop(latest)
        return -latest[0] if latest else None

    def cut(claim: int, time_ns: int, state: State) -> tuple[int, int, State]:
        thread, since = open_claims[claim]
        open_claims[claim] = thread, time_ns
        return thread, since, state

    def ended(until_ns: float) -> Iterator[tuple[int, int, State]]:
        # An end comes before a start at the same time: the GIL was handed over.
        while ends and ends[0][0] <= until_ns:
            time_ns, claim = heapq.heappop(ends)
            was_holder = claim == top()
            yield cut(claim, time_ns, State.HELD if was_holder else State.PREEMPTED)
            del open_claims[claim]
            successor = top()
            if was_holder and successor is not None:
                yield cut(successor, time_ns, State.PREEMPTED)

    for claim, (start, end, thread) in enumerate(held):
        yield from ended(start)
        holder = top()
        if holder is not None:
            yield cut(holder, start, State.HELD)
        open_claims[claim] = thread, start
        heapq.heappush(latest, -claim)
        heapq.heappush(ends, (end, claim))
    yield from ended(math.inf)


def _replaced(claimed: Segments, pieces: Iterator[tuple[int, int]]) -> Segments:
    """The states of a thread with those pieces in the place of its claims to hold the GIL."""
    resolved = Segments()
    piece = next(pieces, None)
    for start, end, state in claimed:
        if state is not State.HELD:
            resolved.add(start, state)
            continue
        while piece is not None and piece[0] < end:
            resolved.add(piece[0], State(piece[1]))
            piece = next(pieces, None)
    return resolved.close(claimed.bounds[-1]) if claimed else resolved
