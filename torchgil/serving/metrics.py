"""A batcher's numbers for Prometheus, read when they are scraped: requests pay nothing for it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torchgil.serving.batcher import Batcher
from torchgil.serving.stats import BatcherStats

__all__ = ["export"]


def export(batcher: Batcher, name: str, registry: Any = None) -> Callable[[], None]:
    """Let Prometheus scrape `batcher`; needs `prometheus_client`.

    Metrics: `torchgil_batcher_queued`, `_running` and `_blocked` (requests now), `_requests_total` by
    `outcome`, `_batch_rows` (a histogram), all with the label `batcher`. A batcher that is gone disappears,
    and so does one that a fork left behind in the parent.

    Args:
        batcher: What to watch; not kept alive.
        name: The label's value.
        registry: A `prometheus_client.CollectorRegistry`; None: the default one.

    Returns:
        A function that ends the export.

    Raises:
        ModuleNotFoundError: `prometheus_client` is not installed.
        ValueError: Another batcher of that registry has this name.
    """
    try:
        import prometheus_client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "metrics need prometheus_client: pip install prometheus_client", name=error.name
        ) from error
    if registry is None:
        registry = prometheus_client.REGISTRY
    with _exporting:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _collectors[registry] = _Collector()
            registry.register(collector)
        return collector.add(batcher, name)


class _Collector:
    """All exported batchers of a registry: a metric must not be described twice in one scrape."""

    def __init__(self) -> None:
        self._batchers: dict[str, weakref.ref[Batcher]] = {}

    def add(self, batcher: Batcher, name: str) -> Callable[[], None]:
        watched = self._batchers.get(name)
        if watched is not None and watched() not in (None, batcher):
            raise ValueError(f"another batcher is exported as {name!r} already")
        self._batchers[name] = mine = weakref.ref(batcher)

        def remove() -> None:
            if self._batchers.get(name) is mine:
                del self._batchers[name]

        return remove

    def _stats(self) -> list[tuple[str, BatcherStats]]:
        found = []
        for name, watched in list(self._batchers.items()):
            batcher = watched()
            if batcher is None:
                self._batchers.pop(name, None)
                continue
            with contextlib.suppress(RuntimeError):  # it stayed in the parent of a fork
                found.append((name, batcher.stats()))
        return found

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        found = self._stats()
        if not found:
            return
        for state in ("queued", "running", "blocked"):
            gauge = GaugeMetricFamily(
                f"torchgil_batcher_{state}", f"Requests {state} now", labels=["batcher"]
            )
            for name, stats in found:
                gauge.add_metric([name], getattr(stats, state))
            yield gauge
        ended = CounterMetricFamily(
            "torchgil_batcher_requests", "Requests by outcome", labels=["batcher", "outcome"]
        )
        sizes = HistogramMetricFamily("torchgil_batcher_batch_rows", "Rows per batch", labels=["batcher"])
        for name, stats in found:
            for outcome in ("done", "failed", "cancelled", "timed_out", "dropped"):
                ended.add_metric([name, outcome], getattr(stats, outcome))
            buckets, batches = [], 0
            for rows, count in stats.batch_rows.items():
                batches += count
                buckets.append((str(rows), batches))
            total = sum(rows * count for rows, count in stats.batch_rows.items())
            sizes.add_metric([name], [*buckets, ("+Inf", batches)], total)
        yield ended
        yield sizes


_collectors: weakref.WeakKeyDictionary[Any, _Collector] = weakref.WeakKeyDictionary()  # by registry
_exporting = threading.Lock()
