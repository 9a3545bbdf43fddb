"""What each kind of object counts, as metrics: names, labels, values."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torchgil.watching import GilMonitor, Watchdog
from torchgil.watching._monitor import OTHER

if TYPE_CHECKING:
    from torchgil.serving import Batcher, ThreadPool

__all__ = ["BUCKETS", "KINDS", "Metric", "kind_of"]

_WINDOW_S = 60.0  # what a monitor's gauges speak of, or max_window where that is shorter

# Each value of a label is a series that a server keeps for ever, so that there must be few. Batches are
# counted by their size up to the next of these; threads under at most so many names, from which the number
# is taken that Python counts up for threads that come and go.
BUCKETS = tuple(2**i for i in range(13))
_MOST_NAMES = 100
_COUNTED_UP = re.compile(r"^(Thread|Dummy|ThreadPoolExecutor)-\d+")


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of one object."""

    name: str
    kind: str  # "gauge", "counter"; "histogram": {whole number: how often}
    help: str
    values: Mapping[Any, Any]  # by the values of its labels, a tuple
    labels: tuple[str, ...] = ()
    unit: str = field(default="1", kw_only=True)


def _monitor(monitor: GilMonitor, names: set[str]) -> list[Metric]:
    stats, last = monitor.stats(), monitor.window(min(_WINDOW_S, monitor.max_window))
    held: Counter[tuple[str]] = Counter()
    for thread, looks in stats.held_looks.items():
        held[(_label(thread, names),)] += looks
    return [
        Metric("looks", "counter", "Looks at who holds the GIL", {(): stats.looks}),
        Metric("held_looks", "counter", "Looks that found it held by a thread", held, ("thread",)),
        Metric(
            "held_ratio", "gauge", "Share of the last minute that the GIL was held", {(): last.held_share}
        ),
        Metric("standard_error_ratio", "gauge", "Standard error of held_ratio", {(): last.standard_error}),
    ]


def _label(thread: str, names: set[str]) -> str:
    """The label for a thread's name; `names` are those that there are already."""
    label = (
        _COUNTED_UP.sub(r"\1-N", thread).encode("utf-8", "replace").decode()
    )  # half a pair cannot be written
    if label not in names and len(names) >= _MOST_NAMES:
        return OTHER
    names.add(label)
    return label


def _watchdog(watchdog: Watchdog, _: set[str]) -> list[Metric]:
    stats = watchdog.stats()
    return [
        Metric("holds", "counter", "Holds of the GIL over the threshold", {(): stats.holds}),
        Metric("held_seconds", "counter", "Seconds that these holds took", {(): stats.held_s}, unit="s"),
        Metric("hangs", "counter", "Holds that were told of while they went on", {(): stats.hangs}),
        Metric(
            "hold_seconds",
            "gauge",
            "For how long the hold goes on that the watchdog looks at now",
            {(): stats.hold_s},
            unit="s",
        ),
        Metric("knocks", "counter", "Times that the watchdog asked for the GIL", {(): stats.knocks}),
        Metric("running", "gauge", "1 while the watchdog watches", {(): int(watchdog.running)}),
    ]


def _pool(pool: ThreadPool, _: set[str]) -> list[Metric]:
    stats = pool.stats()
    calls = {(outcome,): getattr(stats, outcome) for outcome in ("done", "failed", "cancelled")}
    return [
        Metric("workers", "gauge", "Threads that the pool may have", {(): stats.workers}),
        Metric("queued", "gauge", "Calls that wait for a worker now", {(): stats.queued}),
        Metric("running", "gauge", "Calls that a worker is in now", {(): stats.running}),
        Metric("calls", "counter", "Calls by outcome", calls, ("outcome",)),
        Metric("busy_seconds", "counter", "Seconds spent in calls", {(): stats.busy_s}, unit="s"),
        _waits(stats.queue_wait_p50_s, stats.queue_wait_p99_s),
    ]


def _batcher(batcher: Batcher, _: set[str]) -> list[Metric]:
    stats = batcher.stats()
    outcomes = ("done", "failed", "cancelled", "timed_out", "dropped")
    requests = {(outcome,): getattr(stats, outcome) for outcome in outcomes}
    return [
        *(
            Metric(state, "gauge", f"Requests {state} now", {(): getattr(stats, state)})
            for state in ("queued", "running", "blocked")
        ),
        Metric("requests", "counter", "Requests by outcome", requests, ("outcome",)),
        Metric("batch_rows", "histogram", "Rows per batch", {(): stats.batch_rows}),
        _waits(stats.wait_p50_s, stats.wait_p99_s),
    ]


def _waits(p50_s: float, p99_s: float) -> Metric:
    values = {("0.5",): p50_s, ("0.99",): p99_s}
    return Metric(
        "queue_wait_seconds", "gauge", "Seconds in the queue, of late", values, ("quantile",), unit="s"
    )


# The type's module and name: what needs torch is not imported for what does not.
KINDS: dict[str, tuple[str, str, Callable[[Any, set[str]], list[Metric]]]] = {
    "monitor": ("torchgil.watching", "GilMonitor", _monitor),
    "watchdog": ("torchgil.watching", "Watchdog", _watchdog),
    "pool": ("torchgil.serving", "ThreadPool", _pool),
    "batcher": ("torchgil.serving", "Batcher", _batcher),
}


def kind_of(obj: object) -> str | None:
    """Which of KINDS an object is of; None: of none."""
    for kind, (module, name, _) in KINDS.items():
        of = getattr(sys.modules.get(module), name, None)  # there, if there is an object of it
        if of is not None and isinstance(obj, of):
            return kind
    return None
