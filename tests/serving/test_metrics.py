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
    registry = prometheus_client.CollectorRegistry()
    with (
        torchgil.Batcher(lambda x: x, max_delay=0, max_batch_size=4) as batcher,
        torchgil.Batcher(len) as other,
    ):
        export(batcher, "mine", registry)
        export(other, "other", registry)
        for rows in (1, 3, 3):
            batcher.submit(torch.ones(rows, 2)).result(60)
        batcher.submit(torch.tensor(1.0)).exception(60)
        text = prometheus_client.generate_latest(registry).decode()
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
