"""Serve a model from Python threads: a pool that shares the cores, a batcher that loses nothing."""

from torchgil.serving.batcher import Batcher
from torchgil.serving.pool import ThreadPool
from torchgil.serving.requests import BatcherClosed, QueueFull
from torchgil.serving.stats import BatcherStats, PoolStats

__all__ = ["Batcher", "BatcherClosed", "BatcherStats", "PoolStats", "QueueFull", "ThreadPool"]
