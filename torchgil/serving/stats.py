"""What a pool and a batcher count, and the numbers made of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BatcherStats", "PoolStats", "quantile"]


def quantile(values: Iterable[float], q: float) -> float:
    """The smallest of `values` that at least the share `q` of them does not exceed (nearest rank).

    Args:
        values: Any numbers; not changed.
        q: Between 0 and 1.

    Returns:
        One of the values; 0.0 where there are none.

    Example:
        >>> quantile([4, 1, 3, 2], 0.5)
        2
        >>> quantile([4, 1, 3, 2], 0.99)
        4
        >>> quantile([], 0.5)
        0.0
    """
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


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
        timed_out: Requests that had no result in time.
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
