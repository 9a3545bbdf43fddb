"""The moving part of a batcher: requests come, a worker forms batches of them, each ends exactly once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from torchgil.serving.requests import (
    BLOCKED,
    ENDED,
    QUEUED,
    RUNNING,
    BatcherClosed,
    QueueFull,
    Request,
    refuse,
    tell,
    tell_error,
)
from torchgil.serving.row_queue import RowQueue
from torchgil.serving.stats import BatcherCounts, BatcherStats
from torchgil.serving.turns import Turn, Turns

__all__ = ["Dispatcher"]


class Dispatcher:
    """Runs batches on an executor; it has no thread and no clock of its own.

    Requests change their state under `_lock`, and their futures are told outside. While requests wait, a turn
    collects, unless `concurrency` turns run; so whoever queues a request appoints a collector where there is
    none, and a collector that has its batch appoints the next.

    Args:
        answer: `answer(requests)` returns the result of each.
        executor: Where turns run.
        queue: The queue; this object's from now on.
        concurrency: Most batches at once.
        retry_halves: True: where `answer` raises, it is called again with each half.
        raise_when_full: True: a full queue raises; False: it blocks.
    """

    def __init__(
        self,
        answer: Callable[[list[Request]], Sequence[Any]],
        executor: Executor,
        queue: RowQueue,
        *,
        concurrency: int,
        retry_halves: bool,
        raise_when_full: bool,
    ) -> None:
        self._answer = answer
        self._queue = queue
        self._retry_halves = retry_halves
        self._raise_when_full = raise_when_full
        self._lock = threading.RLock()  # reentrant: a finalizer may shut the batcher down amid its own work
        self._due = threading.Condition(self._lock)  # the collector waits here
        self._turns = Turns(executor, concurrency, self._work, self._lose)
        self._counts = BatcherCounts()
        self._closed = False
        self._ended: Future[None] = Future()  # closed, and the last turn over
        self._ended.set_running_or_notify_cancel()  # nobody may cancel it
        self.cancelled: deque[Request] = deque()  # by their callers, and not cleared away yet

    # Requests come.

    def offer(self, request: Request) -> None:
        """Queue `request`, or let it wait for room.

        Raises:
            BatcherClosed, QueueFull: The request was not taken.
        """
        with self._lock:
            self._clear_cancelled()
            if self._closed:
                raise BatcherClosed("the batcher is shut down; it takes no more requests")
            if self._queue.full or self._queue.blocked:
                full = f"the batcher's queue is full ({self._queue.requests} requests)"
                if self._raise_when_full:
                    raise QueueFull(full)
                if request.loop is None and self._turns.is_mine():
                    raise QueueFull(
                        f"{full}, and a done-callback or the batched function itself must not wait for room: "
                        "the batcher waits for it"
                    )
                self._queue.block(request)
            elif self._queue.push(request):
                self._due.notify()
            turn = self._turns.appoint()
        self._turns.start(turn)

    def count_refused(self) -> None:
        """A request failed before it was queued, for a fault of its own."""
        with self._lock:
            self._counts.ended["failed"] += 1

    def give_up(self, request: Request, queued: bool = False) -> None:
        """End `request` for lateness where it waits for room; with `queued`, in the queue, too."""
        with self._lock:
            self._clear_cancelled()
            blocked = request.state == BLOCKED
            if not (blocked or (queued and request.state == QUEUED)):
                return
            self._queue.discard(request)
            late = [] if blocked else self._claim([request], "timed_out")
        now_s = time.monotonic()
        _tell_late(late, now_s)
        if blocked:
            waited_s = now_s - request.submitted_s
            refuse(
                [request], QueueFull(f"the batcher's queue had no room for the request in {waited_s:.3g} s")
            )

    # A worker's turn.

    def _work(self, turn: Turn) -> None:
        turn.ident = threading.get_ident()
        while self._next(turn):
            self._serve(turn.batch)
            for request in turn.batch:
                request.payload = None  # who keeps an error, keeps the frames of its traceback
            turn.batch = []
            del request

    def _next(self, turn: Turn) -> bool:
        """Form the next batch of `turn`; False where there is none, and the turn is over."""
        while True:
            with self._lock:
                if turn not in self._turns:
                    return False  # lost, and run all the same
                late = self._collect(turn) if self._turns.collects(turn) else []
                if not (turn.batch or late):
                    self._leave(turn)
                    return False
                successor = self._turns.appoint() if self._queue.requests else None
            self._turns.start(successor)
            _tell_late(late, time.monotonic())
            if turn.batch:
                return True

    def _collect(self, turn: Turn) -> list[Request]:
        """Under the lock: give `turn` a batch, waited for if there are requests; or return late ones."""
        while True:
            self._clear_cancelled()
            if not self._queue.requests:
                return []
            now_s = time.monotonic()
            due, expired = self._queue.take(now_s, flush=self._closed)
            late = self._claim(expired, "timed_out")
            batch = self._claim(due)
            if batch:
                for request in batch:
                    request.state = RUNNING
                self._counts.took(batch, now_s)
                self._turns.collected(turn, batch)
            if batch or late:
                return late
            if not (due or expired):
                self._due.wait(min(self._queue.due_s() - now_s, threading.TIMEOUT_MAX))

    def _serve(self, batch: list[Request]) -> None:
        """Answer `batch`; where it fails, its halves."""
        try:
            results = self._answer(batch)
        except BaseException as error:
            if len(batch) == 1 or not self._retry_halves or not isinstance(error, Exception):
                with self._lock:
                    failed = self._end_running(batch, "failed")
                tell_error(failed, error)
                return
        else:
            with self._lock:
                told = [
                    (r, result, None) for r, result in zip(batch, results, strict=True) if r.state == RUNNING
                ]
                self._counts.served(self._end_running(batch, "done"), time.monotonic())
            tell(told)
            return
        half = len(batch) // 2
        self._serve(batch[:half])
        self._serve(batch[half:])

    def _leave(self, turn: Turn) -> None:
        """Under the lock."""
        self._turns.leave(turn)
        if self._closed and not self._turns:
            self._ended.set_result(None)

    def _lose(self, turn: Turn, why: str) -> None:
        """The executor will not run `turn`; nothing after one that has left."""
        with self._lock:
            if turn not in self._turns:
                return
            lost = self._end_running(turn.batch, "dropped")
            refused: list[Request] = []
            if len(self._turns) == 1:  # no other worker is there to serve them
                lost += self._claim(self._queue.clear(), "dropped")
                refused = self._queue.clear_blocked()
        closed = BatcherClosed(f"the batcher's executor takes no more work: {why}")
        tell_error(lost, closed)
        refuse(refused, closed)
        with self._lock:
            self._leave(turn)
            successor = self._turns.appoint() if self._queue.requests and not self._turns else None
        self._turns.start(successor)

    # How requests end.

    def _claim(self, requests: list[Request], outcome: str | None = None) -> list[Request]:
        """Under the lock: of `requests`, just taken out of the queue, those that are not cancelled."""
        live = [request for request in requests if request.claim()]
        self._counts.ended["cancelled"] += len(requests) - len(live)
        if outcome is not None:
            self._counts.ended[outcome] += len(live)
        return live

    def _end_running(self, requests: list[Request], outcome: str) -> list[Request]:
        """Under the lock: of `requests`, in a batch, those that had no outcome yet."""
        self._clear_cancelled()
        live = [request for request in requests if request.state == RUNNING]
        for request in live:
            request.state = ENDED
        self._counts.ended[outcome] += len(live)
        return live

    def _clear_cancelled(self) -> None:
        """Under the lock: give up what was cancelled; in a batch too, where nobody awaits it any more."""
        while self.cancelled:
            request = self.cancelled.popleft()
            if request.state == RUNNING:
                self._counts.ended["cancelled"] += 1
            elif request.state != ENDED:
                queued = request.state == QUEUED
                self._queue.discard(request)
                if queued:
                    self._claim([request])
            request.state = ENDED

    def close(self, *, drain: bool) -> Future[None] | None:
        """Take no more requests.

        Args:
            drain: True: serve what is queued; False: fail it with BatcherClosed.

        Returns:
            Done when the last turn is over; None for a thread in a turn, which must not wait for itself.
        """
        with self._lock:
            self._clear_cancelled()
            refused = self._queue.clear_blocked()
            dropped = [] if drain else self._claim(self._queue.clear(), "dropped")
            if not (self._closed or self._turns):
                self._ended.set_result(None)
            self._closed = True
            self._due.notify()
            mine = self._turns.is_mine()
        tell_error(dropped, BatcherClosed("the batcher was shut down before it served this request"))
        refuse(refused, BatcherClosed("the batcher was shut down while this request waited for room"))
        return None if mine else self._ended

    def abandon(self, why: str) -> None:
        """Fail what is left, running or not, with BatcherClosed."""
        with self._lock:
            left = self._end_running(list(self._turns.requests()), "dropped")
            left += self._claim(self._queue.clear(), "dropped")
        tell_error(left, BatcherClosed(f"the batcher was shut down before it served this request ({why})"))

    def stats(self) -> BatcherStats:
        """Counts and distributions up to now."""
        with self._lock:
            self._clear_cancelled()
            return self._counts.snapshot(
                queued=self._queue.requests,
                queued_rows=self._queue.rows,
                blocked=len(self._queue.blocked),
                running=sum(request.state == RUNNING for request in self._turns.requests()),
                now_s=time.monotonic(),
            )


def _tell_late(late: list[Request], now_s: float) -> None:
    for request in late:
        waited_s = now_s - request.submitted_s
        tell_error(
            [request], TimeoutError(f"the batcher had no result for the request after {waited_s:.3g} s")
        )
