"""Prometheus sees what the batcher counts."""

from __future__ import annotations

import gc

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from torchgil.serving.metrics import export


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
        from torchgil.serving.metrics import export
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
        sys.modules["prometheus_client"] = None
        import torchgil
        from torchgil.serving.metrics import export
        try:
            export(torchgil.Batcher(len), "x")
        except ModuleNotFoundError as error:
            assert "pip install prometheus_client" in str(error)
        else:
            raise AssertionError
        """
    )
