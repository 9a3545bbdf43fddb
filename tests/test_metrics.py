"""Prometheus and OpenTelemetry see what monitor, watchdog, pool and batcher count."""

from __future__ import annotations

import gc

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from torchgil import held, released
from torchgil.metrics import export


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
        'torchgil_batcher_batch_rows_bucket{batcher="mine",le="1"} 1.0',
        'torchgil_batcher_batch_rows_bucket{batcher="mine",le="3"} 3.0',
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
        assert found["torchgil.batcher.batch_rows", "3", "mine"] == 2
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
