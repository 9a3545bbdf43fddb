"""A batcher's numbers for Prometheus, read when they are scraped: requests pay nothing for it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torchgil.serving.batcher import Batcher

__all__ = ["export"]


def export(batcher: Batcher, name: str, registry: Any = None) -> Any:
    """Let Prometheus scrape `batcher`; needs `prometheus_client`.

    Metrics: `torchgil_batcher_queued`, `_running` and `_blocked` (requests now), `_requests_total` by
    `outcome`, `_batch_rows` (a histogram), all with the label `batcher`. A batcher that is gone disappears.

    Args:
        batcher: What to watch; not kept alive.
        name: The label's value.
        registry: A `prometheus_client.CollectorRegistry`; None: the default one.

    Returns:
        The collector, for `registry.unregister`.

    Raises:
        ModuleNotFoundError: `prometheus_client` is not installed.
    """
    try:
        import prometheus_client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "metrics need prometheus_client: pip install prometheus_client", name=error.name
        ) from error
    collector = _Collector(batcher, name)
    (prometheus_client.REGISTRY if registry is None else registry).register(collector)
    return collector


class _Collector:
    def __init__(self, batcher: Batcher, name: str) -> None:
        self._batcher = weakref.ref(batcher)
        self._labels = [name]

    def describe(self) -> list[Any]:
        # Several batchers share the metrics' names; without this, the registry would refuse the second.
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        batcher = self._batcher()
        if batcher is None:
            return
        stats = batcher.stats()
        for state in ("queued", "running", "blocked"):
            gauge = GaugeMetricFamily(
                f"torchgil_batcher_{state}", f"Requests {state} now", labels=["batcher"]
            )
            gauge.add_metric(self._labels, getattr(stats, state))
            yield gauge
        ended = CounterMetricFamily(
            "torchgil_batcher_requests", "Requests by outcome", labels=["batcher", "outcome"]
        )
        for outcome in ("done", "failed", "cancelled", "timed_out", "dropped"):
            ended.add_metric([*self._labels, outcome], getattr(stats, outcome))
        yield ended
        sizes = HistogramMetricFamily("torchgil_batcher_batch_rows", "Rows per batch", labels=["batcher"])
        buckets, batches = [], 0
        for rows, count in stats.batch_rows.items():
            batches += count
            buckets.append((str(rows), batches))
        total = sum(rows * count for rows, count in stats.batch_rows.items())
        sizes.add_metric(self._labels, [*buckets, ("+Inf", batches)], total)
        yield sizes
