"""What a monitor, a watchdog, a pool and a batcher count, for Prometheus or OpenTelemetry.

Read when it is scraped: nothing that is watched pays for it.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchgil.serving import Batcher, ThreadPool
from torchgil.tracing import GilMonitor, Watchdog

__all__ = ["export"]

_WINDOW_S = 60.0  # what a monitor's gauges speak of, or max_window where that is shorter


@dataclass(frozen=True, slots=True)
class _Metric:
    """One figure of one object."""

    name: str
    kind: str  # "gauge", "counter"; "histogram": {whole number: how often}
    help: str
    values: Mapping[Any, Any]  # by the values of its labels, a tuple
    labels: tuple[str, ...] = ()
    unit: str = field(default="1", kw_only=True)


def export(
    obj: GilMonitor | Watchdog | ThreadPool | Batcher, name: str, registry: Any = None
) -> Callable[[], None]:
    """Lets Prometheus, or OpenTelemetry, read what `obj` counts.

    Metrics are named ``torchgil_KIND_...`` (with dots for OpenTelemetry) and have the label KIND with `name`
    as value; KIND is ``monitor``, ``watchdog``, ``pool`` or ``batcher``. An object that is gone disappears,
    and so does one that a fork left behind in the parent.

    - A monitor: ``looks_total`` and ``held_looks_total`` by ``thread``, whose rates' quotient is the share of
      the time in any stretch; ``held_ratio`` of the last minute and its ``standard_error_ratio``.
    - A watchdog: ``holds_total``, ``held_seconds_total``, ``knocks_total``, ``running``.
    - A pool: ``workers``, ``queued``, ``running``, ``calls_total`` by ``outcome``, ``busy_seconds_total``,
      ``queue_wait_seconds`` by ``quantile``.
    - A batcher: ``queued``, ``running``, ``blocked``, ``requests_total`` by ``outcome``, ``batch_rows`` (a
      histogram), ``queue_wait_seconds`` by ``quantile``.

    Args:
        obj: What to watch; not kept alive.
        name: The label's value.
        registry: A ``prometheus_client.CollectorRegistry``, or an OpenTelemetry ``Meter``; None: the default
            registry of `prometheus_client`, or where that is not installed OpenTelemetry's global meter.

    Returns:
        A function that ends the export.

    Raises:
        ModuleNotFoundError: Neither `prometheus_client` nor `opentelemetry` is installed.
        TypeError: obj is none of the four.
        ValueError: Another object of that kind has this name in that registry.

    >>> import prometheus_client, torchgil
    >>> registry = prometheus_client.CollectorRegistry()
    >>> with torchgil.ThreadPool(2) as pool:
    ...     _ = torchgil.metrics.export(pool, "mine", registry)
    ...     int(registry.get_sample_value("torchgil_pool_workers", {"pool": "mine"}))
    2
    """
    kind = next((kind for kind, (of, _) in _KINDS.items() if isinstance(obj, of)), None)
    if kind is None:
        kinds = ", ".join(of.__name__ for of, _ in _KINDS.values())
        raise TypeError(f"export: one of {kinds} is expected, got {type(obj).__name__}")
    if registry is None:
        registry = _default_registry()
    with _exporting:
        exported = _exported.get(registry)
        if exported is None:
            exported = _Exported()
            if not hasattr(registry, "create_observable_gauge"):
                registry.register(exported)
            _exported[registry] = exported
        remove = exported.add(kind, obj, name)
        if hasattr(registry, "create_observable_gauge"):
            _instruments(registry, exported, kind)
        return remove


def _default_registry() -> Any:
    try:
        import prometheus_client

        return prometheus_client.REGISTRY
    except ModuleNotFoundError:
        pass
    try:
        from opentelemetry import metrics

        return metrics.get_meter("torchgil")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "metrics need prometheus_client or opentelemetry: pip install prometheus_client", name=error.name
        ) from error


class _Exported:
    """All exported objects of a registry: a metric must not be described twice in one scrape."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], weakref.ref[Any]] = {}
        self.instruments: set[str] = set()  # kinds that have them, where the registry is a meter

    def add(self, kind: str, obj: Any, name: str) -> Callable[[], None]:
        watched = self._objects.get((kind, name))
        if watched is not None and watched() not in (None, obj):
            raise ValueError(f"another {kind} is exported as {name!r} already")
        self._objects[kind, name] = mine = weakref.ref(obj)

        def remove() -> None:
            if self._objects.get((kind, name)) is mine:
                del self._objects[kind, name]

        return remove

    def read(self, kind: str) -> list[tuple[str, list[_Metric]]]:
        """Each object's name and metrics."""
        found = []
        for (of_kind, name), watched in list(self._objects.items()):
            if of_kind != kind:
                continue
            obj = watched()
            if obj is None:
                self._objects.pop((kind, name), None)
                continue
            with contextlib.suppress(RuntimeError):  # it stayed in the parent of a fork
                found.append((name, _KINDS[kind][1](obj)))
        return found

    def collect(self) -> Iterator[Any]:
        """What prometheus_client asks of a collector."""
        for kind in _KINDS:
            families: dict[str, Any] = {}
            for name, metrics in self.read(kind):
                for metric in metrics:
                    family = families.get(metric.name)
                    if family is None:
                        family = families[metric.name] = _family(kind, metric)
                    for labels, value in metric.values.items():
                        _add(family, metric.kind, [name, *labels], value)
            yield from families.values()


def _family(kind: str, metric: _Metric) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    make = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    return make[metric.kind](f"torchgil_{kind}_{metric.name}", metric.help, labels=[kind, *metric.labels])


def _add(family: Any, kind: str, labels: list[str], value: Any) -> None:
    if kind != "histogram":
        family.add_metric(labels, value)
        return
    buckets, total = [], 0
    for size, count in value.items():
        total += count
        buckets.append((str(size), total))
    family.add_metric(labels, [*buckets, ("+Inf", total)], sum(size * n for size, n in value.items()))


def _instruments(meter: Any, exported: _Exported, kind: str) -> None:
    """Makes a kind's observable instruments, once: the callbacks read whatever is exported then."""
    from opentelemetry.metrics import Observation

    if kind in exported.instruments:
        return
    exported.instruments.add(kind)

    def observer(wanted: str) -> Callable[[object], list[Any]]:
        def observe(_: object) -> list[Any]:
            found = []
            for name, metrics in exported.read(kind):
                for metric in metrics:
                    if metric.name != wanted:
                        continue
                    for labels, value in metric.values.items():
                        attributes = {kind: name, **dict(zip(metric.labels, labels, strict=True))}
                        if metric.kind == "histogram":  # there is no observable one
                            found += [Observation(n, {**attributes, "size": s}) for s, n in value.items()]
                        else:
                            found.append(Observation(value, attributes))
            return found

        return observe

    for _, metrics in exported.read(kind)[:1]:
        for metric in metrics:
            make = (
                meter.create_observable_gauge if metric.kind == "gauge" else meter.create_observable_counter
            )
            make(
                f"torchgil.{kind}.{metric.name}",
                callbacks=[observer(metric.name)],
                unit=metric.unit,
                description=metric.help,
            )


def _monitor(monitor: GilMonitor) -> list[_Metric]:
    stats, last = monitor.stats(), monitor.window(min(_WINDOW_S, monitor.max_window))
    held = {(thread,): looks for thread, looks in stats.held_looks.items()}
    return [
        _Metric("looks", "counter", "Looks at who holds the GIL", {(): stats.looks}),
        _Metric("held_looks", "counter", "Looks that found it held by a thread", held, ("thread",)),
        _Metric(
            "held_ratio", "gauge", "Share of the last minute that the GIL was held", {(): last.held_share}
        ),
        _Metric("standard_error_ratio", "gauge", "Standard error of held_ratio", {(): last.standard_error}),
    ]


def _watchdog(watchdog: Watchdog) -> list[_Metric]:
    stats = watchdog.stats()
    return [
        _Metric("holds", "counter", "Holds of the GIL over the threshold", {(): stats.holds}),
        _Metric("held_seconds", "counter", "Seconds that these holds took", {(): stats.held_s}, unit="s"),
        _Metric("knocks", "counter", "Times that the watchdog asked for the GIL", {(): stats.knocks}),
        _Metric("running", "gauge", "1 while the watchdog watches", {(): int(watchdog.running)}),
    ]


def _pool(pool: ThreadPool) -> list[_Metric]:
    stats = pool.stats()
    calls = {(outcome,): getattr(stats, outcome) for outcome in ("done", "failed", "cancelled")}
    return [
        _Metric("workers", "gauge", "Threads that the pool may have", {(): stats.workers}),
        _Metric("queued", "gauge", "Calls that wait for a worker now", {(): stats.queued}),
        _Metric("running", "gauge", "Calls that a worker is in now", {(): stats.running}),
        _Metric("calls", "counter", "Calls by outcome", calls, ("outcome",)),
        _Metric("busy_seconds", "counter", "Seconds spent in calls", {(): stats.busy_s}, unit="s"),
        _waits(stats.queue_wait_p50_s, stats.queue_wait_p99_s),
    ]


def _batcher(batcher: Batcher) -> list[_Metric]:
    stats = batcher.stats()
    outcomes = ("done", "failed", "cancelled", "timed_out", "dropped")
    requests = {(outcome,): getattr(stats, outcome) for outcome in outcomes}
    return [
        *(
            _Metric(state, "gauge", f"Requests {state} now", {(): getattr(stats, state)})
            for state in ("queued", "running", "blocked")
        ),
        _Metric("requests", "counter", "Requests by outcome", requests, ("outcome",)),
        _Metric("batch_rows", "histogram", "Rows per batch", {(): stats.batch_rows}),
        _waits(stats.wait_p50_s, stats.wait_p99_s),
    ]


def _waits(p50_s: float, p99_s: float) -> _Metric:
    values = {("0.5",): p50_s, ("0.99",): p99_s}
    return _Metric(
        "queue_wait_seconds", "gauge", "Seconds in the queue, of late", values, ("quantile",), unit="s"
    )


_KINDS: dict[str, tuple[type, Callable[[Any], list[_Metric]]]] = {
    "monitor": (GilMonitor, _monitor),
    "watchdog": (Watchdog, _watchdog),
    "pool": (ThreadPool, _pool),
    "batcher": (Batcher, _batcher),
}
_exported: weakref.WeakKeyDictionary[Any, _Exported] = weakref.WeakKeyDictionary()  # by registry
_exporting = threading.Lock()
