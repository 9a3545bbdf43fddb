"""The calls of a pool: each on its way to a worker, and what is counted of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from torchgil.serving.stats import PoolStats, quantile

__all__ = ["Call", "CallLedger"]


class CallLedger:
    """Counts calls. Calls and workers refer to it, never to the pool, so that a dropped pool is collected."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._submitted = self._started = self._done = self._failed = self._cancelled = 0
        self._busy_s = 0.0
        self._running_since_s = 0.0  # sum of the start times of the calls that run now
        self._waits_s: deque[float] = deque(maxlen=4096)
        self.worker_idents: set[int] = set()
        self.broken = False

    def submitted(self, calls: int) -> None:
        with self._lock:
            self._submitted += calls

    def settled(self, future: Future[Any]) -> None:
        # Done and failed are counted by the call itself, before its future lets the caller go on.
        if future.cancelled():
            with self._lock:
                self._cancelled += 1

    def started(self, submitted_s: float) -> float:
        now = time.perf_counter()
        with self._lock:
            self._started += 1
            self._running_since_s += now
            self._waits_s.append(now - submitted_s)
        return now

    def finished(self, started_s: float, *, failed: bool) -> None:
        now = time.perf_counter()
        with self._lock:
            self._done += not failed
            self._failed += failed
            self._running_since_s -= started_s
            self._busy_s += now - started_s

    def snapshot(self, workers: int, intra_op_threads: int) -> PoolStats:
        with self._lock:
            running = self._started - self._done - self._failed
            queued = self._submitted - self._started - self._cancelled
            lost = queued if self.broken else 0
            busy_s = self._busy_s + running * time.perf_counter() - self._running_since_s
            waits_s = list(self._waits_s)
            done, failed, cancelled = self._done, self._failed + lost, self._cancelled
        return PoolStats(
            workers=workers,
            intra_op_threads=intra_op_threads,
            queued=queued - lost,
            running=running,
            done=done,
            failed=failed,
            cancelled=cancelled,
            busy_s=max(0.0, busy_s),
            queue_wait_p50_s=quantile(waits_s, 0.5),
            queue_wait_p99_s=quantile(waits_s, 0.99),
        )


class Call:
    """One call on its way to a worker."""

    __slots__ = ("_args", "_fn", "_kwargs", "_ledger", "_submitted_s")

    def __init__(self, ledger: CallLedger, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._ledger, self._fn, self._args, self._kwargs = ledger, fn, args, kwargs
        self._submitted_s = time.perf_counter()

    def __call__(self) -> Any:
        started_s = self._ledger.started(self._submitted_s)
        failed = True
        try:
            result = self._fn(*self._args, **self._kwargs)
            failed = False
            return result
        finally:
            self._ledger.finished(started_s, failed=failed)
