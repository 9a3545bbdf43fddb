"""What a batcher counts while it runs. Every method is called under the dispatcher's lock."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from torchgil.serving.requests import Request
from torchgil.serving.stats import BatcherStats, quantile

__all__ = ["BatcherLedger"]


class BatcherLedger:
    """Counts of requests by outcome, batch sizes, and waits."""

    def __init__(self) -> None:
        self.done = self.failed = self.cancelled = self.timed_out = self.dropped = 0
        self._batch_rows: Counter[int] = Counter()
        self._waits_s: deque[float] = deque(maxlen=4096)
        self._served: deque[tuple[float, int]] = deque(maxlen=256)  # when a batch was answered, and its rows

    def took(self, batch: Sequence[Request], now_s: float) -> None:
        """A batch leaves the queue."""
        self._waits_s.extend([now_s - request.submitted_s for request in batch])
        self._batch_rows[sum([request.rows for request in batch])] += 1

    def served(self, told: Sequence[tuple[Request, object]], now_s: float) -> None:
        """Requests of one batch, or of the part of one that was tried again, have their results."""
        self.done += len(told)
        self._served.append((now_s, sum([request.rows for request, _ in told])))

    def snapshot(
        self, *, queued: int, queued_rows: int, blocked: int, running: int, now_s: float
    ) -> BatcherStats:
        """The numbers as they stand."""
        ended = (self.done, self.failed, self.cancelled, self.timed_out, self.dropped)
        served_rows = sum(rows for _, rows in self._served)
        # The first entry opens the window: its own rows were served before it.
        window_s = now_s - self._served[0][0] if len(self._served) > 1 else 0.0
        return BatcherStats(
            queued=queued,
            queued_rows=queued_rows,
            blocked=blocked,
            running=running,
            submitted=queued + running + sum(ended),
            done=self.done,
            failed=self.failed,
            cancelled=self.cancelled,
            timed_out=self.timed_out,
            dropped=self.dropped,
            batches=self._batch_rows.total(),
            batch_rows=dict(sorted(self._batch_rows.items())),
            wait_p50_s=quantile(self._waits_s, 0.5),
            wait_p99_s=quantile(self._waits_s, 0.99),
            rows_per_s=(served_rows - self._served[0][1]) / window_s if window_s > 0 else 0.0,
        )
