"""Who held the GIL while a thread waited for it. Pure: data in, data out."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchgil.tracing._recording import State, ThreadRecording
from torchgil.tracing._segments import Segments

__all__ = ["Holds", "holders_meanwhile"]


@dataclass(frozen=True, slots=True)
class Holds:
    """Each hold of the GIL by any thread, in order: at most one thread holds it."""

    starts: Sequence[int]
    ends: Sequence[int]
    threads: Sequence[int]  # the index of each one's thread

    @classmethod
    def of(cls, segments: Sequence[Segments]) -> Holds:
        starts, ends, threads = array("q"), array("q"), array("i")

        def held(thread: int) -> Iterator[tuple[int, int, int]]:
            return ((start, end, thread) for start, end, state in segments[thread] if state is State.HELD)

        # Merged as they are read: to sort millions of them in one call would hold the GIL for seconds.
        for start, end, thread in heapq.merge(*map(held, range(len(segments)))):
            starts.append(start)
            ends.append(end)
            threads.append(thread)
        return cls(starts, ends, threads)


def holders_meanwhile(
    segments: Segments, holds: Holds, threads: Sequence[ThreadRecording]
) -> dict[str, float]:
    """Seconds that each other thread held the GIL while this one waited for it, by name, the most first."""
    starts, ends = holds.starts, holds.ends
    waited = [0] * len(threads)
    first = 0  # that ends after the start of this wait
    for start, end, state in segments:
        if state is not State.WAIT:
            continue
        first = bisect_right(ends, start, first)
        at = first
        while at < len(starts) and starts[at] < end:
            waited[holds.threads[at]] += min(end, ends[at]) - max(start, starts[at])
            at += 1
    by_name: defaultdict[str, int] = defaultdict(int)
    for thread, ns in zip(threads, waited, strict=True):
        if ns:
            by_name[thread.name] += ns
    return {name: ns * 1e-9 for name, ns in sorted(by_name.items(), key=lambda item: -item[1])}
