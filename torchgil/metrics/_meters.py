"""Exported objects as instruments of an OpenTelemetry meter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchgil.metrics._exported import Exported, in_buckets

__all__ = ["instruments", "is_meter", "one_of_its_name"]

_proxies: dict[tuple[Any, ...], Any] = {}  # by name; OpenTelemetry keeps them, too


def is_meter(registry: Any) -> bool:
    """Whether it is OpenTelemetry's, and not prometheus_client's."""
    return callable(getattr(registry, "create_observable_gauge", None))


def one_of_its_name(meter: Any) -> Any:
    """The meter that stands for all that will be one with `meter`.

    Until a program has set its meter provider, each `get_meter` returns a proxy of its own. Then all proxies
    of a name lead to one real meter, on which each would make the same instruments again.
    """
    for proxy in _proxies.values():
        if getattr(proxy, "_real_meter", None) is meter:
            return proxy
    if type(meter).__name__ != "_ProxyMeter":
        return meter
    return _proxies.setdefault((meter.name, meter.version, meter.schema_url), meter)


def instruments(meter: Any, exported: Exported, kind: str) -> None:
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
                            found += [
                                Observation(n, {**attributes, "size": f"{size:g}"})
                                for size, n in in_buckets(value).items()
                            ]
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
