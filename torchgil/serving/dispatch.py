"""The moving part of a batcher: requests come, a worker forms batches of them, each ends exactly once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from torchgil.serving.requests import BatcherClosed, QueueFull, Request, tell, tell_error
from torchgil.serving.row_queue import RowQueue
from torchgil.serving.stats import BatcherCounts, BatcherStats

__all__ = ["Dispatcher"]

_log = logging.getLogger("torchgil")


class _Turn:
    """A worker's turn on the executor: it serves batches until there are none, or another collects them."""

    __slots__ = ("batch", "ident")

    def __init__(self) -> None:
        self.batch: list[Request] = []
        self.ident = 0  # of its thread, once it runs


class Dispatcher:
    """Runs batches on an executor; it has no thread and no clock of its own.

    Requests change their state under `_lock`, and their futures are told outside. There are at most
    `concurrency` turns, of which at most one is the collector: it waits for the next batch. Whoever queues a
    request appoints a collector where there is none, and so does a collector that has its batch.

    Args:
        answer: `answer(requests)` returns the result of each.
        queue: This object's from now on.
        executor, concurrency, retry_halves: As the batcher's.
        raise_when_full: True: a full queue raises; False: it blocks.
    """

    def __init__(
        self,
        answer: Callable[[list[Request]], Sequence[Any]],
        queue: RowQueue,
        executor: Executor,
        *,
        concurrency: int,
        retry_halves: bool,
        raise_when_full: bool,
    ) -> None:
        self._answer = answer
        self._executor = executor
        self._queue = queue
        self._concurrency = concurrency
        self._retry_halves = retry_halves
        self._raise_when_full = raise_when_full
        self._lock = threading.RLock()  # reentrant: a finalizer may shut the batcher down amid its own work
        self._due = threading.Condition(self._lock)  # the collector waits here
        self._turns: set[_Turn] = set()
        self._collector: _Turn | None = None
        self._counts = BatcherCounts()
        self._closed = False
        self._over: Future[None] = Future()  # closed, and the last turn has ended
        self._over.set_running_or_notify_cancel()  # nobody may cancel it

    # Requests come.

    def offer(self, request: Request) -> None:
        """Queue `request`, or let it wait for room.

        Raises:
            BatcherClosed, QueueFull: The request was not taken.
        """
        with self._lock:
            if self._closed:
                raise BatcherClosed("the batcher is shut down; it takes no more requests")
            if self._queue.has_room():
                if self._queue.push(request):
                    self._due.notify()
            else:
                full = f"the batcher's queue is full ({self._queue.requests} requests)"
                if self._raise_when_full:
                    raise QueueFull(full)
                if request.loop is None and self._is_mine():
                    raise QueueFull(
                        f"{full}, and a done-callback or the batched function itself must not wait for room: "
                        "the batcher waits for it"
                    )
                self._queue.block(request)
            turn = self._appoint()
        self._start(turn)

    def count_refused(self) -> None:
        """A request failed before it was queued, for a fault of its own."""
        with self._lock:
            self._counts.ended["failed"] += 1

    def give_up(self, request: Request, queued: bool = False) -> None:
        """End `request` for lateness where it waits for room; with `queued`, in the queue, too."""
        with self._lock:
            blocked = request.state == "blocked"
            if not (blocked or (queued and request.state == "queued")):
                return
            late = self._queue.remove(request)
            if not blocked:
                late = self._end(late, "timed_out")
        _tell_late(late, QueueFull if blocked else TimeoutError)

    # Turns.

    def _appoint(self) -> _Turn | None:
        """Under the lock: a new collector to `_start`, where requests wait and there may be one more turn."""
        if self._collector is not None or len(self._turns) >= self._concurrency or not self._queue.requests:
            return None
        self._collector = turn = _Turn()
        self._turns.add(turn)
        return turn

    def _start(self, turn: _Turn | None) -> None:
        """Hand `turn` to the executor."""
        if turn is None:
            return
        try:
            future = self._executor.submit(self._work, turn)
        except BaseException as error:  # the executor, or the interpreter, is shut down; it is full; Ctrl-C
            self._lose(turn, str(error) or type(error).__name__)
            if not isinstance(error, Exception):
                raise
        else:
            future.add_done_callback(lambda future: self._check(turn, future))

    def _work(self, turn: _Turn) -> None:
        turn.ident = threading.get_ident()
        while self._next(turn):
            self._serve(turn.batch)
            for request in turn.batch:
                request.payload = None  # who keeps an error, keeps its frames, and so the requests
            turn.batch = []
            del request

    def _next(self, turn: _Turn) -> bool:
        """Form the next batch of `turn`; False where there is none, and the turn has ended."""
        while not turn.batch:
            with self._lock:
                if turn not in self._turns:
                    return False  # lost, and run all the same
                late = self._collect(turn)
                if not (turn.batch or late):
                    self._leave(turn)
                    return False
                successor = self._appoint()
            self._start(successor)
            _tell_late(late, TimeoutError)
        return True

    def _collect(self, turn: _Turn) -> list[Request]:
        """Under the lock: give `turn` a batch, waited for if there are requests; or return late ones."""
        if self._collector not in (turn, None):
            return []
        self._collector = turn
        while self._queue.requests:
            now_s = time.monotonic()
            batch, late = self._queue.take(now_s, flush=self._closed)
            if batch:
                self._counts.took(batch, now_s)
                turn.batch, self._collector = batch, None
            if batch or late:
                return self._end(late, "timed_out")
            if self._queue.requests:
                self._due.wait(min(self._queue.due_s() - now_s, threading.TIMEOUT_MAX))
        return []

    def _serve(self, batch: list[Request]) -> None:
        """Answer `batch`; where it fails, its halves."""
        try:
            results = self._answer(batch)
        except BaseException as error:
            if len(batch) == 1 or not self._retry_halves or not isinstance(error, Exception):
                with self._lock:
                    failed = self._end(batch, "failed")
                tell_error(failed, error)
                return
        else:
            with self._lock:
                done = self._end(batch, "done")
                self._counts.served(done, time.monotonic())
            if len(done) < len(batch):  # some were abandoned or withdrawn meanwhile
                of = dict(zip(batch, results, strict=True))
                results = [of[request] for request in done]
            tell(done, results)
            return
        half = len(batch) // 2
        self._serve(batch[:half])
        self._serve(batch[half:])

    def _leave(self, turn: _Turn) -> None:
        """Under the lock: the turn has ended."""
        if turn not in self._turns:
            return
        self._turns.remove(turn)
        if self._collector is turn:
            self._collector = None
        if self._closed and not self._turns:
            self._over.set_result(None)

    def _check(self, turn: _Turn, future: Future[None]) -> None:
        """The executor is done with `turn`: has it run?"""
        if turn not in self._turns:
            return
        error = None if future.cancelled() else future.exception()
        if error is not None:  # a fault of ours
            _log.error("torchgil's batcher failed", exc_info=error)
        self._lose(turn, "it dropped the batch's turn" if error is None else f"it failed with {error!r}")

    def _lose(self, turn: _Turn, why: str) -> None:
        """The executor will not run `turn`."""
        with self._lock:
            lost, refused = list(turn.batch), []
            if len(self._turns) == 1:  # no other worker is there to serve them
                refused = self._queue.clear_blocked()
                lost += self._queue.clear()
            lost = self._end(lost, "dropped")
        tell_error(lost + refused, BatcherClosed(f"the batcher's executor takes no more work: {why}"))
        with self._lock:
            self._leave(turn)
            successor = None if self._turns else self._appoint()
        self._start(successor)

    # How requests end.

    def _end(self, requests: Sequence[Request], outcome: str) -> list[Request]:
        """Under the lock: give `requests` their outcome; those that had none yet, and are to be told."""
        ended = []
        for request in requests:
            if request.state == "taken":
                request.state = "ended"
                if request.loop is not None and request.future.cancelled():
                    self._counts.ended["cancelled"] += 1
                else:
                    ended.append(request)
        self._counts.ended[outcome] += len(ended)
        return ended

    def close(self, *, drain: bool) -> Future[None] | None:
        """Take no more requests.

        Args:
            drain: True: serve what is queued; False: fail it with BatcherClosed.

        Returns:
            Done when the last turn has ended; None for a thread in a turn, which must not wait for itself.
        """
        with self._lock:
            refused = self._queue.clear_blocked()
            dropped = [] if drain else self._end(self._queue.clear(), "dropped")
            if not (self._closed or self._turns):
                self._over.set_result(None)
            self._closed = True
            self._due.notify()
            mine = self._is_mine()
        tell_error(dropped, BatcherClosed("the batcher was shut down before it served this request"))
        tell_error(refused, BatcherClosed("the batcher was shut down while this request waited for room"))
        return None if mine else self._over

    def abandon(self, why: str) -> None:
        """Fail what is left, running or not, with BatcherClosed."""
        with self._lock:
            left = [request for turn in self._turns for request in turn.batch] + self._queue.clear()
            left = self._end(left, "dropped")
        tell_error(left, BatcherClosed(f"the batcher was shut down before it served this request ({why})"))

    def stats(self) -> BatcherStats:
        """Counts and distributions up to now."""
        with self._lock:
            self._queue.sweep()
            running = sum(request.state == "taken" for turn in self._turns for request in turn.batch)
            return self._counts.snapshot(self._queue, running, time.monotonic())

    def _is_mine(self) -> bool:
        """Under the lock: whether this thread is in a turn: in a done-callback or in the batched function."""
        return any(turn.ident == threading.get_ident() for turn in self._turns)


def _tell_late(late: list[Request], error: type[Exception]) -> None:
    missed = "room in its queue" if error is QueueFull else "result"
    for request in late:
        waited_s = time.monotonic() - request.submitted_s
        tell_error([request], error(f"the batcher had no {missed} for the request after {waited_s:.3g} s"))
