"""Garbage collections of one thread, from its events. Pure: data in, data out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from torchgil._garbage import NO_COLLECTIONS, Collections
from torchgil.tracing._recording import Kind, State, ThreadRecording
from torchgil.tracing._segments import Segments

__all__ = ["Interval", "collections_of", "intervals", "together"]

Interval = tuple[int, int, int]  # start_ns, end_ns, generation

_NS = 1e-9
_KINDS = (Kind.COLLECTION_START, Kind.COLLECTION_END)


def intervals(thread: ThreadRecording, segments: Segments) -> Iterator[Interval]:
    """Each collection, in order, as far as it lies within the thread's time.

    A collection whose start was not recorded began before that time, and one whose end was not goes on
    until its end. The interpreter runs one collection at a time, so that none lies in another.
    """
    if not segments or not any(kind in thread.kinds for kind in _KINDS):
        return
    first_ns, last_ns = segments[0][0], segments[-1][1]
    started: tuple[int, int] | None = (first_ns, -1)  # time and generation; before the first event, unknown
    known = False
    for time_ns, kind, name in zip(thread.times_ns, thread.kinds, thread.names, strict=True):
        if time_ns >= last_ns:
            break
        if kind == Kind.COLLECTION_START:
            started, known = (max(time_ns, first_ns), name), True
        elif kind == Kind.COLLECTION_END:
            if started is not None and time_ns > started[0]:
                yield started[0], time_ns, name
            started = None
    if started is not None and known and last_ns > started[0]:
        yield started[0], last_ns, started[1]


def collections_of(thread: ThreadRecording, segments: Segments, start_ns: int, end_ns: int) -> Collections:
    """What one thread spent in collections between two times of the monotonic clock."""
    totals = [0, 0, 0, 0]
    count = releases = longest = 0
    generation = None
    for begin, end, of in intervals(thread, segments):
        begin, end = max(begin, start_ns), min(end, end_ns)
        if begin >= end:
            continue
        count += 1
        releases += _releases(thread, begin, end)
        if end - begin > longest:
            longest, generation = end - begin, of
        for at in range(segments.at(begin), len(segments)):
            since, until, state = segments[at]
            if since >= end:
                break
            totals[state] += max(0, min(end, until) - max(begin, since))
    return Collections(
        count=count,
        wall_s=sum(totals) * _NS,
        free_s=totals[State.FREE] * _NS,
        held_s=totals[State.HELD] * _NS,
        releases=releases,
        longest_s=longest * _NS,
        generation=generation,
    )


def _releases(thread: ThreadRecording, start_ns: int, end_ns: int) -> int:
    first, last = (bisect_left(thread.times_ns, time_ns) for time_ns in (start_ns, end_ns))
    return sum(kind == Kind.RELEASE for kind in thread.kinds[first:last])


def together(several: Iterable[Collections]) -> Collections:
    """Those of several threads."""
    parts = [each for each in several if each.count]
    longest = max(parts, key=lambda each: each.longest_s, default=NO_COLLECTIONS)
    return Collections(
        count=sum(each.count for each in parts),
        wall_s=sum((each.wall_s for each in parts), 0.0),
        free_s=sum((each.free_s for each in parts), 0.0),
        held_s=sum((each.held_s for each in parts), 0.0),
        releases=sum(each.releases for each in parts),
        longest_s=longest.longest_s,
        generation=longest.generation,
    )
