"""Serve a model from Python threads: a pool that shares the cores, a batcher that loses nothing."""

from torchgil import _torch_half as _torch_half  # first: where there is no torch that fits, it says so
from torchgil.serving._batcher import Batcher
from torchgil.serving._pool import ThreadPool
from torchgil.serving._requests import BatcherClosed, QueueFull
from torchgil.serving._stats import BatcherStats, PoolStats

__all__ = ["Batcher", "BatcherClosed", "BatcherStats", "PoolStats", "QueueFull", "ThreadPool"]
