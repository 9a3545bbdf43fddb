"""What a pool and a batcher count, and the numbers made of it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from torchgil._statistics import quantile
from torchgil.serving._requests import Request
from torchgil.serving._row_queue import RowQueue

__all__ = ["BatcherCounts", "BatcherStats", "PoolCounts", "PoolStats"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A moment's view of a `ThreadPool`. Counts run from the pool's making.

    Attributes:
        workers: Threads the pool may have.
        intra_op_threads: Threads one op may use in a worker.
        queued: Calls that wait for a worker.
        running: Calls that a worker is in.
        done: Calls that returned.
        failed: Calls that raised, and calls lost to an initializer that raised.
        cancelled: Calls cancelled before a worker took them.
        busy_s: Seconds spent in calls, over all workers, calls still running included.
        queue_wait_p50_s: Median seconds from `submit` to the start, over the last 4096 calls started.
        queue_wait_p99_s: The same, 99th percentile.
        gil_window_s: Seconds traced by `stats(gil=True)`; None where the GIL was not asked for.
        gil_wait_s: Seconds the workers waited for the GIL in that window, over all workers, asking for it
            back or switched out by the interpreter; None likewise.
    """

    workers: int
    intra_op_threads: int
    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    busy_s: float
    queue_wait_p50_s: float
    queue_wait_p99_s: float
    gil_window_s: float | None = None
    gil_wait_s: float | None = None


class PoolCounts:
    """What a pool counts while it runs. Its calls and workers refer to this, never to the pool, so that a
    dropped pool is collected."""

    def __init__(self) -> None:
        # Reentrant: a finalizer that cancels a call counts that while its own thread may be in here.
        self._lock = threading.RLock()
        self.waiting: set[object] = set()  # a ticket for each call that is queued
        self._started = self._done = self._failed = self._cancelled = 0
        self._busy_s = 0.0
        self._running_since_s = 0.0  # sum of the start times of the calls that run now
        self._waits_s: deque[float] = deque(maxlen=4096)
        self.worker_idents: set[int] = set()
        self.broken = False  # a worker's start failed, and the executor drops what is queued

    def settled(self, ticket: object, future: Future[Any]) -> None:
        """A call's future has its outcome; others than a cancellation are counted already."""
        if future.cancelled():
            with self._lock:
                self.waiting.discard(ticket)
                self._cancelled += 1

    def call(self, ticket: object, submitted_s: float, fn: Callable[..., T], args: Any, kwargs: Any) -> T:
        """Call `fn` in a worker, and count it before its future lets the caller go on."""
        started_s, failed = time.perf_counter(), True
        with self._lock:
            self.waiting.discard(ticket)
            self._started += 1
            self._running_since_s += started_s
            self._waits_s.append(started_s - submitted_s)
        try:
            result = fn(*args, **kwargs)
            failed = False
            return result
        finally:
            with self._lock:
                self._done += not failed
                self._failed += failed
                self._running_since_s -= started_s
                self._busy_s += time.perf_counter() - started_s

    def snapshot(self, workers: int, intra_op_threads: int) -> PoolStats:
        """The numbers as they stand."""
        with self._lock:
            running = self._started - self._done - self._failed
            queued = len(self.waiting)
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


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """A moment's view of a `Batcher`. Counts run from its making.

    `submitted` is the sum of `queued`, `running`, `done`, `failed`, `cancelled`, `timed_out` and `dropped`. A
    request that `submit` itself refused (QueueFull, BatcherClosed) counts nowhere.

    Attributes:
        queued: Requests that wait for a batch.
        queued_rows: Their rows.
        blocked: Callers that wait for room in the queue; not submitted yet.
        running: Requests in batches that run.
        submitted: Requests taken, those that could not be batched included.
        done: Requests with a result.
        failed: Requests with an error of their own or of the function.
        cancelled: Requests cancelled by their callers.
        timed_out: Requests that were in no batch in time.
        dropped: Requests failed with BatcherClosed.
        batches: Batches taken from the queue. Calls made again to find a bad request are not counted.
        batch_rows: How many batches had how many rows.
        wait_p50_s: Median seconds from `submit` to the batch, over the last 4096 requests.
        wait_p99_s: The same, 99th percentile.
        rows_per_s: Rows answered per second over the last 256 batches, up to now.
    """

    queued: int
    queued_rows: int
    blocked: int
    running: int
    submitted: int
    done: int
    failed: int
    cancelled: int
    timed_out: int
    dropped: int
    batches: int
    batch_rows: dict[int, int]
    wait_p50_s: float
    wait_p99_s: float
    rows_per_s: float


class BatcherCounts:
    """What a batcher counts while it runs; used under its lock."""

    def __init__(self) -> None:
        self.ended = dict.fromkeys(("done", "failed", "cancelled", "timed_out", "dropped"), 0)
        self._batch_rows: Counter[int] = Counter()
        self._waits_s: deque[float] = deque(maxlen=4096)
        self._served: deque[tuple[float, int]] = deque(maxlen=256)  # when a batch was answered, and its rows

    def took(self, batch: Sequence[Request], now_s: float) -> None:
        """A batch leaves the queue."""
        self._waits_s.extend([now_s - request.submitted_s for request in batch])
        self._batch_rows[sum([request.rows for request in batch])] += 1

    def served(self, requests: Sequence[Request], now_s: float) -> None:
        """Requests of one batch, or of the part of one that was tried again, have their results."""
        self._served.append((now_s, sum([request.rows for request in requests])))

    def snapshot(self, queue: RowQueue, running: int, now_s: float) -> BatcherStats:
        """The numbers as they stand."""
        # The first entry opens the window: its own rows were served before it.
        window_s = now_s - self._served[0][0] if len(self._served) > 1 else 0.0
        window_rows = sum(rows for _, rows in self._served) - self._served[0][1] if self._served else 0
        return BatcherStats(
            queued=queue.requests,
            queued_rows=queue.rows,
            blocked=len(queue.blocked),
            running=running,
            submitted=queue.requests + running + queue.cancelled + sum(self.ended.values()),
            done=self.ended["done"],
            failed=self.ended["failed"],
            cancelled=queue.cancelled + self.ended["cancelled"],
            timed_out=self.ended["timed_out"],
            dropped=self.ended["dropped"],
            batches=sum(self._batch_rows.values()),
            batch_rows=dict(sorted(self._batch_rows.items())),
            wait_p50_s=quantile(self._waits_s, 0.5),
            wait_p99_s=quantile(self._waits_s, 0.99),
            rows_per_s=window_rows / window_s if window_s > 0 else 0.0,
        )
