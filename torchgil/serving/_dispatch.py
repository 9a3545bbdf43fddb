"""The moving part of a batcher: requests come, a worker forms batches of them, each ends exactly once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from torchgil.serving._own_work import Bell, amid, aside, change, hand_over, later, own_work
from torchgil.serving._requests import (
    BatcherClosed,
    QueueFull,
    Request,
    RequestTimeout,
    tell,
    tell_error,
    tell_late,
)
from torchgil.serving._row_queue import RowQueue
from torchgil.serving._stats import BatcherCounts, BatcherStats

__all__ = ["Dispatcher"]

_log = logging.getLogger("torchgil")
_change = change(BatcherClosed, QueueFull)


class _Turn:
    """A worker's turn on the executor: it serves batches until there are none, or another collects them."""

    __slots__ = ("batch", "by", "handed_over", "ident")

    def __init__(self) -> None:
        self.batch: list[Request] = []
        self.by = threading.get_ident()  # the thread that hands it to the executor
        self.handed_over = False
        self.ident = 0  # of its own thread, once it runs


class Dispatcher:
    """Runs batches on an executor; it has no thread and no clock of its own.

    Requests change their state under `_lock`, as own work of a thread, and their futures are told after it.
    There are at most `concurrency` turns, of which at most one is the collector: it waits for the next batch.
    Whoever queues a request appoints a collector where there is none, and so does a collector that has its
    batch. A note has the list of requests to be told before any is in it: so all that were taken out of the
    queue are told, even if Ctrl-C comes in between.

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
        self._lock = threading.Lock()
        self._due = Bell()  # the collector waits for it
        self._turns: set[_Turn] = set()
        self._collector: _Turn | None = None
        self._counts = BatcherCounts()
        self._closed = False
        self._over: list[
            Callable[[], object]
        ] = []  # to be called when it is closed and the last turn has ended
        self._executor_ended = ""  # why; it is not asked any more

    # Requests come.

    def offer(self, request: Request) -> None:
        """Queue `request`, or let it wait for room. Amid own work that is done later, and its future is told.

        Raises:
            BatcherClosed, QueueFull: The request was not taken.
        """
        if amid():
            later(self._offer_late, request)
        else:
            self._offer(request)

    def _offer_late(self, request: Request) -> None:
        if request.state == "new":
            try:
                self.offer(request)
            except Exception as error:
                tell_error([request], error)

    @_change
    def _offer(self, request: Request) -> None:
        with self._lock:
            if self._closed:
                raise BatcherClosed("the batcher is shut down; it takes no more requests")
            if self._queue.has_room():
                if self._queue.push(request):
                    self._due.ring()
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

    @_change
    def count_refused(self) -> None:
        """A request failed before it was queued, for a fault of its own."""
        with self._lock:
            self._counts.ended["failed"] += 1

    @_change
    def give_up(self, request: Request, queued: bool = False) -> None:
        """End `request` for lateness where there is no room for it; with `queued`, in the queue, too."""
        blocked: list[Request] = []
        late: list[Request] = []
        ended: list[Request] = []
        later(tell_late, blocked, QueueFull)
        later(self._fail, late, ended, "timed_out", RequestTimeout)
        with self._lock:
            if request.state == "blocked" and not self._queue.admit(request):
                self._queue.remove_blocked(request, blocked)
            elif queued and request.state == "queued":
                self._queue.remove(request, late)
                self._end(late, ended, "timed_out")

    def recover(self) -> None:
        """After an exception that came from nowhere, as Ctrl-C does: mend what this thread was at."""
        with self._lock:
            self._queue.mend()
            me = threading.get_ident()
            mine = [turn for turn in self._turns if turn.by == me and not turn.handed_over]
            appointed = self._appoint()
        for turn in [*mine, *([appointed] if appointed else [])]:
            if turn.ident:  # the executor ran it here, and it did not come to its end
                self._lose(turn, "it was interrupted")
                continue
            try:
                self._start(turn)
            except BaseException as error:
                self._lose(turn, repr(error))
                raise

    # Turns.

    def _appoint(self) -> _Turn | None:
        """Under the lock: a new collector to `_start`, where requests wait and there may be one more turn."""
        if self._collector is not None or len(self._turns) >= self._concurrency or not self._queue.requests:
            return None
        turn = _Turn()
        self._collector = turn
        self._turns.add(turn)
        return turn

    def _start(self, turn: _Turn | None) -> None:
        """As own work: hand `turn` to the executor."""
        if turn is None:
            return
        if self._executor_ended:
            self._lose(turn, self._executor_ended)
            return
        try:
            future = hand_over(self._executor, self._work, turn)
            future.add_done_callback(lambda future: self._check(turn, future))
            turn.handed_over = True
        except Exception as error:  # the executor, or the interpreter, is shut down; it is full
            self._lose(turn, str(error) or type(error).__name__)

    def _work(self, turn: _Turn) -> None:
        with aside():
            if not own_work(self._begin, turn):
                return
            while self._next(turn):
                self._serve(turn.batch)
                for request in turn.batch:
                    request.payload = None  # who keeps an error, keeps its frames, and so the requests
                turn.batch = []
                del request

    def _begin(self, turn: _Turn) -> bool:
        with self._lock:
            if turn.ident or turn not in self._turns:
                return False  # handed over twice, or lost, and run all the same
            turn.ident = threading.get_ident()
            return True

    def _next(self, turn: _Turn) -> bool:
        """Form the next batch of `turn`; False where there is none, and the turn has ended."""
        while not turn.batch:
            wait_s = own_work(self._collect, turn)
            if wait_s is None:
                return False
            if wait_s > 0:
                self._due.wait(wait_s)
        return True

    def _collect(self, turn: _Turn) -> float | None:
        """As own work: give `turn` a batch; or seconds to wait for one, or None where the turn has ended."""
        late: list[Request] = []
        ended: list[Request] = []
        later(tell_late, ended, RequestTimeout)
        wait_s = 0.0
        with self._lock:
            if turn not in self._turns:
                return None
            if self._collector not in (turn, None) or not self._queue.requests:
                self._leave(turn)
                return None
            self._collector = turn
            now_s = time.monotonic()
            batch = self._queue.take(now_s, late, flush=self._closed)
            self._end(late, ended, "timed_out")
            if batch:
                self._counts.took(batch, now_s)
                turn.batch, self._collector = batch, None
            elif self._queue.requests and not late:  # else all were cancelled, or are to be told
                wait_s = self._queue.due_s() - now_s
                self._due.silence()  # what it rang for has been looked at
            successor = self._appoint()
        self._start(successor)
        return wait_s

    def _serve(self, batch: list[Request]) -> None:
        """Answer `batch`; where it fails, its halves."""
        try:
            results = self._answer(batch)
        except BaseException as error:
            if len(batch) == 1 or not self._retry_halves or not isinstance(error, Exception):
                failed: list[Request] = []
                own_work(self._end_locked, batch, failed, "failed")
                tell_error(failed, error)
                return
        else:
            done: list[Request] = []
            own_work(self._end_locked, batch, done, "done")
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
        self._turns.discard(turn)
        if self._collector is turn:
            self._collector = None
        if self._closed and not self._turns:
            for tell_over in self._over:
                tell_over()

    def _check(self, turn: _Turn, future: Future[None]) -> None:
        """The executor is done with `turn`: has it run?"""
        if turn not in self._turns or (turn.ident and future.cancelled()):
            return
        error = None if future.cancelled() else future.exception()
        why = "it dropped a turn after shutdown" if error is None else f"it failed with {error!r}"
        if error is None or isinstance(error, BrokenExecutor):
            # It is at its end, and tells so under its own lock: a done-callback that asks again must not
            # come to it.
            self._executor_ended = why
        else:  # a fault of ours
            _log.error("torchgil's batcher failed", exc_info=error)
        self._lost(turn, why)

    @_change
    def _lost(self, turn: _Turn, why: str) -> None:
        self._lose(turn, why)

    def _lose(self, turn: _Turn, why: str) -> None:
        """As own work: the executor will not run `turn`."""
        lost: list[Request] = []
        ended: list[Request] = []
        refused: list[Request] = []
        error = BatcherClosed(f"the batcher's executor takes no more work: {why}")
        later(self._fail, lost, ended, "dropped", error)
        later(tell_error, refused, error)
        later(own_work, self._end_turn, turn)
        with self._lock:
            lost += turn.batch
            if not self._turns - {turn}:  # no other worker is there to serve them
                self._queue.clear_blocked(refused)
                self._queue.clear(lost)
            self._end(lost, ended, "dropped")

    def _end_turn(self, turn: _Turn) -> None:
        with self._lock:
            self._leave(turn)
            successor = None if self._turns else self._appoint()
        self._start(successor)

    # How requests end.

    def _end(self, requests: Sequence[Request], ended: list[Request], outcome: str) -> None:
        """Under the lock: give `requests` their outcome; `ended` gets those that had none yet, to be told."""
        for request in requests:
            if request.state == "taken":
                withdrawn = request.loop is not None and request.future.cancelled()
                request.state = "ended"
                self._counts.ended["cancelled" if withdrawn else outcome] += 1
                if not withdrawn:
                    ended.append(request)
        if outcome == "done":
            self._counts.served(ended, time.monotonic())

    def _end_locked(self, requests: Sequence[Request], ended: list[Request], outcome: str) -> None:
        with self._lock:
            self._end(requests, ended, outcome)

    def _fail(
        self,
        requests: list[Request],
        ended: list[Request],
        outcome: str,
        error: BaseException | type[Exception],
    ) -> None:
        """As a note: tell the `requests` that have ended, and end those that an interruption left."""
        if len(requests) > len(ended):
            own_work(self._end_locked, requests, ended, outcome)
        if isinstance(error, BaseException):
            tell_error(ended, error)
        else:
            tell_late(ended, error)

    @_change
    def close(self, *, drain: bool, over: Callable[[], object]) -> bool:
        """Take no more requests.

        Args:
            drain: True: serve what is queued; False: fail it with BatcherClosed.
            over: Called once the last turn has ended, at once or in another thread, under the lock.

        Returns:
            Whether the calling thread may wait for that. A worker of the executor could be what the last turn
            waits for; amid own work it is None, and the batcher is closed right after that.
        """
        refused: list[Request] = []
        dropped: list[Request] = []
        ended: list[Request] = []
        why = "the batcher was shut down before it served this request"
        later(self._fail, dropped, ended, "dropped", BatcherClosed(why))
        why = "the batcher was shut down while this request waited for room"
        later(tell_error, refused, BatcherClosed(why))
        with self._lock:
            self._closed = True
            self._queue.clear_blocked(refused)
            if not drain:
                self._queue.clear(dropped)
                self._end(dropped, ended, "dropped")
            if self._turns:
                self._over.append(over)
            else:
                over()
            self._due.ring()
            return not (self._is_mine() or self._is_worker())

    @_change
    def abandon(self, why: str) -> None:
        """Fail what is left, running or not, with BatcherClosed."""
        left: list[Request] = []
        ended: list[Request] = []
        error = BatcherClosed(f"the batcher was shut down before it served this request ({why})")
        later(self._fail, left, ended, "dropped", error)
        with self._lock:
            for turn in self._turns:
                left += turn.batch
            self._queue.clear(left)
            self._end(left, ended, "dropped")

    def stats(self) -> BatcherStats:
        """Counts and distributions up to now; amid own work of this thread, of a moment within it."""
        return self._snapshot() if amid() else self._swept_stats()

    @_change
    def _swept_stats(self) -> BatcherStats:
        with self._lock:
            self._queue.sweep()
            return self._snapshot()

    def _snapshot(self) -> BatcherStats:
        running = sum(request.state == "taken" for turn in list(self._turns) for request in turn.batch)
        return self._counts.snapshot(self._queue, running, time.monotonic())

    def _is_worker(self) -> bool:
        """Whether this thread is one of the executor's, as far as that can be known."""
        ident = threading.get_ident()
        return any(thread.ident == ident for thread in list(getattr(self._executor, "_threads", ())))

    def _is_mine(self) -> bool:
        """Under the lock: whether this thread is in a turn: in a done-callback or in the batched function."""
        return any(turn.ident == threading.get_ident() for turn in self._turns)
