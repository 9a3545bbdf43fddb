"""What a monitor, a watchdog, a pool and a batcher count, for Prometheus or OpenTelemetry.

Read when it is scraped: nothing that is watched pays for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchgil._checks import text
from torchgil.metrics._exported import Exported
from torchgil.metrics._kinds import KINDS, kind_of
from torchgil.metrics._meters import instruments, is_meter, one_of_its_name

if TYPE_CHECKING:
    from torchgil.serving import Batcher, ThreadPool
    from torchgil.watching import GilMonitor, Watchdog

__all__ = ["export"]


def export(
    obj: GilMonitor | Watchdog | ThreadPool | Batcher, name: str, registry: Any = None
) -> Callable[[], None]:
    """Lets Prometheus, or OpenTelemetry, read what `obj` counts.

    Metrics are named ``torchgil_KIND_...`` (with dots for OpenTelemetry) and have the label KIND with `name`
    as value; KIND is ``monitor``, ``watchdog``, ``pool`` or ``batcher``. An object that is gone disappears,
    and so does one that a fork left behind in the parent.

    - A monitor: ``looks_total`` and ``held_looks_total`` by ``thread``, whose rates' quotient is the share of
      the time in any stretch; ``held_ratio`` of the last minute and its ``standard_error_ratio``. Threads
      that Python numbers (``Thread-12``) are one, ``Thread-N``; after 100 names the others are ``(other)``.
    - A watchdog: ``holds_total``, ``held_seconds_total``, ``knocks_total``, ``running``.
    - A pool: ``workers``, ``queued``, ``running``, ``calls_total`` by ``outcome``, ``busy_seconds_total``,
      ``queue_wait_seconds`` by ``quantile``.
    - A batcher: ``queued``, ``running``, ``blocked``, ``requests_total`` by ``outcome``, ``batch_rows`` (a
      histogram by powers of two up to 4096; for OpenTelemetry a counter of batches by ``size``, rounded up to
      those), ``queue_wait_seconds`` by ``quantile``.

    Args:
        obj: What to watch; not kept alive.
        name: The label's value.
        registry: A ``prometheus_client.CollectorRegistry``, or an OpenTelemetry ``Meter``; None: the default
            registry of `prometheus_client`, or where that is not installed OpenTelemetry's global meter.

    Returns:
        A function that ends the export. (Where all collectors of a registry were unregistered instead, the
        next export to it brings back what was exported before and not ended.)

    Raises:
        ModuleNotFoundError: Neither `prometheus_client` nor `opentelemetry` is installed.
        TypeError: obj is none of the four, name no str, or registry neither kind of registry.
        ValueError: Another object of that kind has this name in that registry, or name cannot be written.

    >>> import prometheus_client, torchgil
    >>> registry = prometheus_client.CollectorRegistry()
    >>> with torchgil.ThreadPool(2) as pool:
    ...     _ = torchgil.metrics.export(pool, "mine", registry)
    ...     int(registry.get_sample_value("torchgil_pool_workers", {"pool": "mine"}))
    2
    """
    text("export: name", name)
    kind = kind_of(obj)
    if kind is None:
        kinds = ", ".join(name for _, name, _ in KINDS.values())
        raise TypeError(f"export: one of {kinds} is expected, got {type(obj).__name__}")
    if registry is None:
        registry = _default_registry()
    elif not (is_meter(registry) or callable(getattr(registry, "register", None))):
        raise TypeError(
            "export: registry must be a prometheus_client.CollectorRegistry or an OpenTelemetry Meter, got "
            f"{registry!r}"
        )
    with _exporting:
        if is_meter(registry):
            registry = one_of_its_name(registry)
        try:
            exported = _exported.get(registry)
        except TypeError as error:  # what is exported is kept for it as long as it lives
            wanted = "hashable, and an object that can be referred to weakly"
            raise TypeError(f"export: registry must be {wanted}, got {registry!r}") from error
        if exported is None:
            exported = _exported[registry] = Exported()
            if not is_meter(registry):
                try:
                    registry.register(exported)
                except BaseException:
                    _exported.pop(registry, None)
                    raise
        elif _refuses_twice(registry):
            with contextlib.suppress(ValueError):  # it was not unregistered, with all of the registry
                registry.register(exported)
        remove = exported.add(kind, obj, name)
        if is_meter(registry):
            instruments(registry, exported, kind)
        return remove


def _refuses_twice(registry: Any) -> bool:
    """Whether it is known to refuse a collector whose names it has, with a ValueError."""
    of = getattr(sys.modules.get("prometheus_client"), "CollectorRegistry", None)
    return of is not None and isinstance(registry, of)


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


_exported: weakref.WeakKeyDictionary[Any, Exported] = weakref.WeakKeyDictionary()  # by registry
# Reentrant, for a finalizer or a signal handler may export while its own thread does.
_exporting = threading.RLock()


def _renew_lock() -> None:
    global _exporting
    _exporting = threading.RLock()  # in a forked child nobody is left to release the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
