"""Prometheus and OpenTelemetry see what monitor, watchdog, pool and batcher count."""

from __future__ import annotations

import gc
import os
from collections import Counter

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from torchgil import held, released
from torchgil.metrics import export
from torchgil.watching import MonitorStats


def test_a_scrape_tells_what_stats_tell():
    prometheus_client = pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    registry = prometheus_client.CollectorRegistry()
    with (
        torchgil.Batcher(lambda x: x, max_delay=0, max_batch_size=4) as batcher,
        torchgil.Batcher(len) as other,
    ):
        export(batcher, "mine", registry)
        end_other = export(other, "other", registry)
        with pytest.raises(ValueError, match="another batcher is exported as 'mine'"):
            export(other, "mine", registry)
        for rows in (1, 3, 3):
            batcher.submit(torch.ones(rows, 2)).result(60)
        batcher.submit(torch.tensor(1.0)).exception(60)
        text = prometheus_client.generate_latest(registry).decode()
        end_other()
        assert "other" not in prometheus_client.generate_latest(registry).decode()
    assert text.count("# TYPE torchgil_batcher_queued ") == 1
    list(text_string_to_metric_families(text))  # or the format is not Prometheus's
    for line in (
        'torchgil_batcher_requests_total{batcher="mine",outcome="done"} 3.0',
        'torchgil_batcher_requests_total{batcher="mine",outcome="failed"} 1.0',
        'torchgil_batcher_requests_total{batcher="other",outcome="done"} 0.0',
        'torchgil_batcher_queued{batcher="mine"} 0.0',
        'torchgil_batcher_batch_rows_bucket{batcher="mine",le="1.0"} 1.0',
        'torchgil_batcher_batch_rows_bucket{batcher="mine",le="2.0"} 1.0',
        'torchgil_batcher_batch_rows_bucket{batcher="mine",le="4.0"} 3.0',
        'torchgil_batcher_batch_rows_bucket{batcher="mine",le="+Inf"} 3.0',
        'torchgil_batcher_batch_rows_sum{batcher="mine"} 7.0',
    ):
        assert line in text.splitlines()
    del batcher, other
    gc.collect()
    assert "torchgil" not in prometheus_client.generate_latest(registry).decode()


def test_a_scrape_in_a_forked_child_leaves_out_the_parents_batchers():
    pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    run_in_child(
        """
        import os, prometheus_client, torchgil, warnings
        from torchgil.metrics import export
        warnings.simplefilter("ignore")
        registry = prometheus_client.CollectorRegistry()
        batcher = torchgil.Batcher(len)
        export(batcher, "parent", registry)
        child = os.fork()
        if not child:
            own = torchgil.Batcher(len)
            export(own, "own", registry)
            text = prometheus_client.generate_latest(registry).decode()
            os._exit(7 if "own" in text and "parent" not in text else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """
    )


def test_without_prometheus_client_the_error_says_what_to_install():
    run_in_child(
        """
        import sys
        sys.modules["prometheus_client"] = sys.modules["opentelemetry"] = None
        import torchgil
        from torchgil.metrics import export
        try:
            export(torchgil.Batcher(len), "x")
        except ModuleNotFoundError as error:
            assert "need prometheus_client or opentelemetry: pip install" in str(error)
        else:
            raise AssertionError
        """
    )


def samples(registry):
    """(name, labels) -> value of all that a scrape gives."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_a_scrape_tells_what_a_monitor_a_watchdog_and_a_pool_count():
    prometheus_client = pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    registry = prometheus_client.CollectorRegistry()
    with (
        torchgil.GilMonitor(interval=0.001) as monitor,
        torchgil.Watchdog(on_hold=lambda hold: None) as watchdog,
        torchgil.ThreadPool(2) as pool,
    ):
        for obj, name in ((monitor, "m"), (watchdog, "w"), (pool, "p")):
            torchgil.metrics.export(obj, name, registry)
        held.spin(0.2)
        released.spin(0.01)
        pool.submit(len, "abc").result(60)
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0).result(60)
        found = samples(registry)
        list(text_string_to_metric_families(prometheus_client.generate_latest(registry).decode()))
    looks = found["torchgil_monitor_looks_total", "m"]
    by_main = found["torchgil_monitor_held_looks_total", "MainThread", "m"]
    assert 0 < by_main <= looks
    assert found["torchgil_monitor_held_ratio", "m"] > 0.3
    assert 0 < found["torchgil_monitor_standard_error_ratio", "m"] < 0.5
    assert found["torchgil_watchdog_holds_total", "w"] == len(watchdog.holds) == 1
    assert found["torchgil_watchdog_held_seconds_total", "w"] == watchdog.holds[0].duration_s
    assert found["torchgil_watchdog_knocks_total", "w"] >= 1
    assert found["torchgil_watchdog_hangs_total", "w"] == 0
    assert found["torchgil_watchdog_hold_seconds", "w"] >= 0
    assert found["torchgil_watchdog_running", "w"] == 1
    assert found["torchgil_pool_workers", "p"] == 2
    assert found["torchgil_pool_calls_total", "done", "p"] == 1
    assert found["torchgil_pool_calls_total", "failed", "p"] == 1
    assert found["torchgil_pool_busy_seconds_total", "p"] > 0
    assert ("torchgil_pool_queue_wait_seconds", "0.99", "p") in found
    stopped = samples(registry)
    assert stopped["torchgil_watchdog_running", "w"] == 0
    assert stopped["torchgil_watchdog_holds_total", "w"] == 1
    del obj, monitor, watchdog, pool
    gc.collect()
    assert samples(registry) == {}


def test_a_watchdog_counts_what_it_does_not_keep():
    with torchgil.Watchdog(threshold=0.02, max_holds=1, on_hold=lambda hold: None) as watchdog:
        for _ in range(3):
            held.spin(0.15)
    stats = watchdog.stats()
    assert (stats.holds, len(watchdog.holds)) == (3, 1)
    assert stats.held_s > watchdog.holds[0].duration_s


def test_opentelemetry_reads_the_same():
    metrics = pytest.importorskip("opentelemetry.sdk.metrics", reason="pip install opentelemetry-sdk")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    meter = metrics.MeterProvider([reader]).get_meter("test")

    def read():
        data = reader.get_metrics_data()
        return {
            (metric.name, *sorted(map(str, point.attributes.values()))): point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    with (
        torchgil.Batcher(lambda x: x, max_delay=0, max_batch_size=4) as batcher,
        torchgil.Batcher(len) as other,
        torchgil.GilMonitor(interval=0.001) as monitor,
    ):
        export(batcher, "mine", meter)
        end_other = export(other, "other", meter)
        export(monitor, "mine", meter)
        with pytest.raises(ValueError, match="another batcher is exported as 'mine'"):
            export(other, "mine", meter)
        for rows in (1, 3, 3):
            batcher.submit(torch.ones(rows, 2)).result(60)
        held.spin(0.1)
        found = read()
        assert found["torchgil.batcher.requests", "done", "mine"] == 3
        assert found["torchgil.batcher.requests", "done", "other"] == 0
        assert found["torchgil.batcher.queued", "mine"] == 0
        assert found["torchgil.batcher.batch_rows", "4", "mine"] == 2
        assert found["torchgil.monitor.looks", "mine"] > 0
        assert found["torchgil.monitor.held_ratio", "mine"] > 0
        end_other()
        assert ("torchgil.batcher.queued", "other") not in read()


def test_something_else_is_refused():
    with pytest.raises(
        TypeError, match="one of GilMonitor, Watchdog, ThreadPool, Batcher is expected, got list"
    ):
        export([], "x")


def test_in_a_fork_a_monitor_and_a_watchdog_of_the_parent_count_nothing():
    pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    run_in_child(
        """
        import os, prometheus_client, torchgil, warnings
        warnings.simplefilter("ignore")
        registry = prometheus_client.CollectorRegistry()
        with torchgil.GilMonitor(interval=0.001) as monitor, torchgil.Watchdog() as watchdog:
            torchgil.metrics.export(monitor, "m", registry)
            torchgil.metrics.export(watchdog, "w", registry)
            torchgil.released.spin(0.05)
            pid = os.fork()
            if not pid:
                value = registry.get_sample_value
                looks = value("torchgil_monitor_looks_total", {"monitor": "m"})
                running = value("torchgil_watchdog_running", {"watchdog": "w"})
                os._exit(7 if (looks, running) == (0, 0) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        """
    )


def test_the_number_of_series_does_not_grow_with_sizes_or_threads(monkeypatch):
    prometheus_client = pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    registry = prometheus_client.CollectorRegistry()
    monitor = torchgil.GilMonitor()
    looks = Counter({"MainThread": 1000})
    monkeypatch.setattr(
        monitor, "stats", lambda: MonitorStats(1.0, {}, looks.total(), dict(looks), 1.0, 0.0), raising=False
    )
    with torchgil.Batcher(lambda x: x, max_delay=0, max_batch_size=5000) as batcher:
        export(batcher, "b", registry)
        export(monitor, "m", registry)
        before = len(samples(registry))
        for rows in (0, 1, 2, 3, 5, 4096, 4097):
            batcher.submit(torch.ones(rows, 1)).result(60)
        assert len(samples(registry)) == before
        series = set()
        for i in range(2000):  # as they come and go in weeks
            looks[f"Thread-{i}"] += 1
            looks[f"Thread-{i} (work)"] += 1
            looks[f"ThreadPoolExecutor-{i}_0"] += 1
            looks[f"request {i}"] += 1
            if i % 100 == 0:
                series |= samples(registry).keys()
        found = samples(registry)
        list(text_string_to_metric_families(generate_latest(registry).decode()))
    held = "torchgil_monitor_held_looks_total"
    assert len({key for key in series if key[0] == held}) <= 101
    assert found[held, "MainThread", "m"] == 1000
    assert found[held, "Thread-N", "m"] == found[held, "Thread-N (work)", "m"] == 2000
    assert found[held, "(other)", "m"] > 1800
    assert sum(value for key, value in found.items() if key[0] == held) == looks.total()
    bucket = "torchgil_batcher_batch_rows_bucket"
    assert [found[bucket, le, "b"] for le in ("1.0", "2.0", "4.0", "4096.0")] == [2, 3, 4, 6]
    assert found[bucket, "+Inf", "b"] == 7


@pytest.mark.parametrize(
    ("name", "error"), [(0, TypeError), (None, TypeError), (b"x", TypeError), ("\udc80", ValueError)]
)
def test_a_name_that_no_scrape_could_write_is_refused(name, error):
    prometheus_client = pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    registry = prometheus_client.CollectorRegistry()
    with torchgil.ThreadPool(1) as pool, pytest.raises(error, match="export: name must be"):
        export(pool, name, registry)
    assert prometheus_client.generate_latest(registry) == b""


@pytest.mark.parametrize("registry", [0, "default", object()])
def test_what_is_no_registry_is_refused(registry):
    with (
        torchgil.ThreadPool(1) as pool,
        pytest.raises(TypeError, match="registry must be a prometheus_client"),
    ):
        export(pool, "x", registry)


def test_a_registry_that_cannot_be_kept_is_refused():
    class Slotted:
        __slots__ = ()

        def register(self, collector):
            pass

    class Unhashable:
        __hash__ = None

        def register(self, collector):
            pass

    with torchgil.ThreadPool(1) as pool:
        for registry in (Slotted(), Unhashable()):
            with pytest.raises(TypeError, match="export: registry must be hashable, and"):
                export(pool, "x", registry)


@pytest.mark.parametrize("auto_describe", [False, True])
def test_a_registry_whose_collectors_were_all_unregistered_is_exported_to_again(auto_describe):
    prometheus_client = pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    registry = prometheus_client.CollectorRegistry(auto_describe=auto_describe)

    def workers(name):
        return registry.get_sample_value("torchgil_pool_workers", {"pool": name})

    with torchgil.ThreadPool(1) as pool, torchgil.ThreadPool(2) as other:
        export(pool, "x", registry)()
        for collector in list(registry._collector_to_names):
            registry.unregister(collector)
        export(other, "y", registry)
        assert workers("y") == 2
        export(pool, "z", registry)  # it is there: not a second time
        assert (workers("y"), workers("z")) == (2, 1)
        text = prometheus_client.generate_latest(registry).decode()
        assert text.count('torchgil_pool_workers{pool="y"}') == 1


def test_names_of_threads_and_objects_that_fail_leave_the_scrape_of_the_rest(monkeypatch, caplog):
    prometheus_client = pytest.importorskip("prometheus_client", reason="pip install prometheus_client")
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Gauge("users_own", "", registry=registry).set(5)
    monitor = torchgil.GilMonitor()
    monkeypatch.setattr(
        monitor, "stats", lambda: MonitorStats(1.0, {}, 1, {"half \udc80": 1}, 1.0, 0.0), raising=False
    )
    with torchgil.ThreadPool(1) as pool:
        export(monitor, "m", registry)
        export(pool, "p", registry)
        monkeypatch.setattr(pool, "stats", lambda: 1 / 0)
        text = prometheus_client.generate_latest(registry).decode()
    assert "users_own 5.0" in text
    assert 'thread="half ?"' in text
    assert "the metrics of pool 'p' cannot be read" in caplog.text


def test_exports_before_the_meter_provider_is_set_make_each_instrument_once():
    pytest.importorskip("opentelemetry.sdk.metrics", reason="pip install opentelemetry-sdk")
    child = run_in_child(
        """
        import sys
        sys.modules["prometheus_client"] = None
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        import torchgil
        from torchgil.metrics import export
        pools = [torchgil.ThreadPool(1) for _ in range(8)]
        for i in range(2):
            export(pools[i], f"default {i}")
            export(pools[2 + i], f"own {i}", metrics.get_meter("app"))
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        export(pools[4], "default 2")
        export(pools[5], "own 2", metrics.get_meter("app"))
        export(pools[6], "other", metrics.get_meter("other"))
        seen = [
            (scope.scope.name, metric.name, point.attributes["pool"])
            for resource in reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if metric.name == "torchgil.pool.workers"
        ]
        assert sorted(seen) == sorted(
            [("torchgil", "torchgil.pool.workers", f"default {i}") for i in range(3)]
            + [("app", "torchgil.pool.workers", f"own {i}") for i in range(3)]
            + [("other", "torchgil.pool.workers", "other")]
        ), seen
        """
    )
    assert "already been created" not in child.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_amid_an_export_leaves_the_child_able_to_export():
    run_in_child(
        """
        import os, prometheus_client, torchgil, torchgil.metrics
        registry = prometheus_client.CollectorRegistry()
        import threading
        held, go = threading.Event(), threading.Event()
        def hold():
            with torchgil.metrics._exporting:
                held.set()
                go.wait()
        threading.Thread(target=hold).start()
        held.wait()
        pid = os.fork()
        if not pid:
            torchgil.metrics.export(torchgil.ThreadPool(1), "child", registry)
            os._exit(7)
        go.set()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        """,
        timeout=60,
    )


def test_an_object_that_is_exported_amid_an_export_is_exported_too():
    prometheus_client = pytest.importorskip("prometheus_client", reason="pip install prometheus_client")

    class Registry(prometheus_client.CollectorRegistry):
        def register(self, collector):
            super().register(collector)
            export(pool, "of a finalizer", registry)

    registry = Registry()
    with torchgil.ThreadPool(1) as pool, torchgil.ThreadPool(2) as other:
        export(other, "other", registry)
        assert samples(registry)["torchgil_pool_workers", "of a finalizer"] == 1
        assert samples(registry)["torchgil_pool_workers", "other"] == 2
