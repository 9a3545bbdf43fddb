"""Serve a model from Python threads: a pool that sets intra-op threads right."""

from torchgil.serving.pool import ThreadPool
from torchgil.serving.stats import PoolStats

__all__ = ["PoolStats", "ThreadPool"]
