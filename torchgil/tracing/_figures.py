"""The numbers of a trace, as data: what the ways to show them take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torchgil._garbage import Collections
from torchgil.tracing._recording import Recording
from torchgil.tracing._segments import Segments

__all__ = [
    "LONG_HOLD_S",
    "Figures",
    "OpReport",
    "Span",
    "ThreadReport",
    "Verdict",
    "verdict_of",
]


LONG_HOLD_S = 0.005  # the default switch interval: pure Python gives way after it, a call into C does not


# The last two where nothing can be seen: the interpreter has no GIL, or it is not known who held it.
Verdict = Literal["releases", "holds", "partly", "no GIL", "unknown"]


def verdict_of(free_s: float, wall_s: float) -> Verdict:
    """``releases`` if at least 90 % of the wall time was free, ``holds`` if at most 10 %, else ``partly``.

    >>> verdict_of(0.9, 1.0), verdict_of(0.1, 1.0), verdict_of(0.5, 1.0)
    ('releases', 'holds', 'partly')
    """
    if free_s >= 0.9 * wall_s > 0:
        return "releases"
    return "holds" if free_s <= 0.1 * wall_s else "partly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one thread did to the GIL in a stretch of time; the four parts add up to wall_s."""

    wall_s: float
    free_s: float
    held_s: float
    wait_s: float
    preempted_s: float
    releases: int  # release windows that it opened
    longest_hold_s: float
    longest_wait_s: float
    collections: Collections  # of garbage; part of the times above


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadReport(Span):
    """One thread's time in the trace."""

    name: str
    ident: int
    native_id: int
    waits_after: dict[str, float]  # op -> seconds waited in windows it ran in; "": windows without an op
    waits_for: dict[str, float]  # thread -> seconds that it held the GIL while this one waited for it


@dataclass(frozen=True, slots=True)
class OpReport:
    """One op's calls. Times include the ops called inside, and are counted once where an op calls itself.

    wait_s is the waiting within the call, and that at the end of the window which it ran in.
    """

    name: str
    calls: int
    calls_held: int  # entered with the GIL held by the thread
    wall_s: float
    free_s: float
    held_s: float
    wait_s: float
    preempted_s: float
    longest_hold_s: float
    verdict: Verdict
    user_scope: bool  # a block marked with torch.profiler.record_function, no op
    origin: str | None = None  # of one that is not torch's own, and held long: where its kernel is registered


@dataclass(frozen=True, slots=True)
class Figures:
    """All that a trace says, in numbers."""

    wall_s: float
    covered_s: float  # up to the first event dropped: what the numbers below speak of
    events: int
    dropped: int
    ops: Sequence[OpReport]
    threads: tuple[ThreadReport, ...]
    notes: tuple[str, ...]
    collections: Collections  # of all threads
    recording: Recording = field(repr=False, compare=False)
    segments: tuple[Segments, ...] = field(repr=False, compare=False)
    has_timeline: bool = field(default=True, repr=False, compare=False)  # False: there are no segments
