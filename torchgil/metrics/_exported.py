"""The exported objects of one registry, and what Prometheus reads of them."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchgil.metrics._kinds import BUCKETS, KINDS, Metric

__all__ = ["Exported", "in_buckets"]

_log = logging.getLogger("torchgil")


@dataclass(eq=False, slots=True)
class _Watched:
    """An exported object, and the names of threads that it has series for."""

    ref: weakref.ref[Any]
    names: set[str] = field(default_factory=set)


class Exported:
    """All exported objects of a registry: a metric must not be described twice in one scrape."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], _Watched] = {}
        self.instruments: set[str] = set()  # kinds that have them, where the registry is a meter

    def add(self, kind: str, obj: Any, name: str) -> Callable[[], None]:
        """Exports `obj`; returns what ends it."""
        watched = self._objects.get((kind, name))
        if watched is not None and watched.ref() not in (None, obj):
            raise ValueError(f"another {kind} is exported as {name!r} already")
        self._objects[kind, name] = mine = _Watched(weakref.ref(obj))

        def remove() -> None:
            if self._objects.get((kind, name)) is mine:
                del self._objects[kind, name]

        return remove

    def read(self, kind: str) -> list[tuple[str, list[Metric]]]:
        """Each object's name and metrics; what cannot be read is left out of the scrape, which goes on."""
        found = []
        for (of_kind, name), watched in list(self._objects.items()):
            if of_kind != kind:
                continue
            obj = watched.ref()
            if obj is None:
                self._objects.pop((kind, name), None)
                continue
            try:
                found.append((name, KINDS[kind][2](obj, watched.names)))
            except RuntimeError as error:  # it stayed in the parent of a fork
                _log.debug("the metrics of %s %r: %s", kind, name, error)
            except Exception:
                _log.exception("the metrics of %s %r cannot be read", kind, name)
        return found

    def describe(self) -> list[Any]:
        """A name by which a registry knows that it has this one; of the others, which come and go, none."""
        from prometheus_client.core import UntypedMetricFamily

        return [UntypedMetricFamily("torchgil_exported_objects", "What torchgil exports")]

    def collect(self) -> Iterator[Any]:
        """What prometheus_client asks of a collector."""
        for kind in KINDS:
            families: dict[str, Any] = {}
            for name, metrics in self.read(kind):
                for metric in metrics:
                    family = families.get(metric.name)
                    if family is None:
                        family = families[metric.name] = _family(kind, metric)
                    for labels, value in metric.values.items():
                        _add(family, metric.kind, [name, *labels], value)
            yield from families.values()


def in_buckets(sizes: Mapping[int, int]) -> dict[float, int]:
    """How many are at most as large as each bucket, and larger than the one before it.

    Example:
        >>> {bucket: n for bucket, n in in_buckets({1: 5, 3: 1, 4: 2, 10**6: 1}).items() if n}
        {1: 5, 4: 3, inf: 1}
    """
    found: dict[float, int] = dict.fromkeys([*BUCKETS, math.inf], 0)
    for size, count in sizes.items():
        found[next(bucket for bucket in found if size <= bucket)] += count
    return found


def _family(kind: str, metric: Metric) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    make = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    return make[metric.kind](f"torchgil_{kind}_{metric.name}", metric.help, labels=[kind, *metric.labels])


def _add(family: Any, kind: str, labels: list[str], value: Any) -> None:
    if kind != "histogram":
        family.add_metric(labels, value)
        return
    buckets, total = [], 0
    for bucket, count in in_buckets(value).items():
        total += count
        buckets.append(("+Inf" if bucket == math.inf else f"{bucket:.1f}", total))
    family.add_metric(labels, buckets, sum(size * n for size, n in value.items()))
