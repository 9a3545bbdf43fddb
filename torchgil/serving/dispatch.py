"""The moving part of a batcher: who takes the next batch, where it runs, and how it all ends."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from torchgil.ops.parker import Parker
from torchgil.serving.book import BatcherClosed, RequestBook
from torchgil.serving.requests import RUNNING, SETTLED, Request, ThreadRequest
from torchgil.serving.row_queue import RowQueue
from torchgil.serving.stats import BatcherStats

__all__ = ["Dispatcher"]

_log = logging.getLogger("torchgil")


class _Drain:
    """One worker's turn: it takes batches until there are none, or another drain collects the next."""

    __slots__ = ("batch", "finished", "finished_s", "ident", "key", "lasted_s", "took_s")

    def __init__(self) -> None:
        self.ident = 0  # of its thread, once it runs
        self.batch: list[Request] = []
        self.key: Any = None  # of the batch, or the last one
        self.took_s = 0.0  # when
        self.lasted_s = 0.0  # how long the last one took
        self.finished: list[tuple[list[Request], Sequence[Any]]] = []  # batches with results still to tell
        self.finished_s = 0.0  # when the first of them was ready

    def requests(self) -> list[Request]:
        """Every request in its hands."""
        return [request for batch, _ in self.finished for request in batch] + self.batch


class Dispatcher(RequestBook):
    """Runs batches on an executor.

    There is no thread of its own and no polling. While requests wait, exactly one drain is the collector: it
    was handed to the executor, or waits for the oldest request's deadline, or is about to look. When it has
    its batch it appoints the next collector, up to `concurrency` drains. An idle batcher has none, but for a
    worker that lingers; and where batches are quick, an event loop's requests have none until its next turn.

    Where batches are quick, worker and callers would hand the GIL back and forth for longer than a batch
    computes, so they take turns: a worker is woken for an event loop's requests at the loop's next turn, when
    they have come together, and the results of alike batches in a row are told together. A 64-wide MLP and
    256 tasks that await: 17 us a row where each wakes the other at once, 10 us in turns, and half the wait.

    A lone request, where batches are quick, costs two wake-ups of a sleeping thread, 10 to 70 us each, and
    little else. Its caller has nothing to do but wait and can spare itself the second: it waits awake,
    without the GIL, and the worker lets it go on once it has released the GIL to wait for more.

    Args:
        run: `run(batch, key)` returns the results to tell; None where it has called `settle` and
            `settle_failed` itself.
        executor: Where drains run.
        queue: The queue; this object's from now on.
        concurrency: Most drains at once.
        together_s: How long a result may wait for the next batch's; a batch that takes less is quick.
        linger_s: How long a worker without work stays for the next request; 0: others may need it.
        awake_s: How long the caller of a lone request waits awake, where the last batch took less than half
            of it; 0: never.
        raise_when_full: True: a full queue raises; False: it blocks.
    """

    def __init__(
        self,
        run: Callable[[list[Request], Any], Sequence[Any] | None],
        executor: Executor,
        queue: RowQueue,
        *,
        concurrency: int,
        together_s: float,
        linger_s: float,
        awake_s: float,
        raise_when_full: bool,
    ) -> None:
        super().__init__(queue, raise_when_full=raise_when_full)
        self._run = run
        self._executor = executor
        self._concurrency = concurrency
        self._together_s = together_s
        self._linger_s = linger_s
        self._lingering = False  # the collector waits for a first request
        self._awake_s = awake_s
        self._told = Parker()  # the caller of a lone request may wait here
        self._idle = threading.Condition(self._lock)  # shutdown waits for the drains
        self._drains: set[_Drain] = set()
        self._collector: _Drain | None = None
        self._lasted_s = math.inf  # how long the last batch took
        self._waking: asyncio.AbstractEventLoop | None = (
            None  # the last that was asked to do so at its next turn
        )

    def offer(self, request: Request, key: Any, expires_s: float | None = None) -> bool:
        """Queue `request`; False where it is blocked until there is room.

        Args:
            request: New, in nobody's hands yet.
            key: What it can be batched with: requests of an equal key.
            expires_s: For a thread's request: when to time it out, on the monotonic clock.

        Raises:
            BatcherClosed, QueueFull: The request was not taken.
        """
        if expires_s is not None and isinstance(request, ThreadRequest):
            self._watch(request, expires_s)  # before anyone can settle it
        drain = refusal = None
        with self._lock:
            if request.state == SETTLED:
                return True  # its time was up before it came here, and its future says so
            admitted = not (self._closed or self._blocked or self._queue.full)
            if admitted:
                due = self._queue.push(request, key)
                if isinstance(request, ThreadRequest):
                    alone = self._queue.requests == 1 and (self._lingering or not self._drains)
                    if alone and self._lasted_s < self._awake_s / 2:
                        request.attend = self.attend
                    drain = self._wake(due)
                else:
                    drain = self._wake(due, request.loop)
            else:
                refusal = self._block(request, key)
                drain = self._wake(True)
        if drain is not None:
            self._start(drain)
        if refusal is not None:
            self._forget([request])
            raise refusal
        return admitted

    def attend(self, request: ThreadRequest) -> None:
        """Wait for the result of `request` without going to sleep, for a moment."""
        until_s = time.monotonic() + self._awake_s
        while request.state != SETTLED and (left_s := until_s - time.monotonic()) > 0:
            if not self._told.spin(left_s):
                return

    def _wake(self, due: bool, loop: asyncio.AbstractEventLoop | None = None) -> _Drain | None:
        """See that somebody collects, now or at the next turn of `loop`; returns a drain to start."""
        awaited = self._collection_awaited and (due or self._lingering)
        if loop is not None and self._lasted_s < self._together_s and not self._queue.full:
            if self._waking is not loop and (awaited or self._collector is None):
                self._waking = loop
                loop.call_soon(self._wake_at_turn, loop)
            return None
        if awaited:
            self._collection.unpark()
        return self._recruit()

    def _wake_at_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._waking is loop:
                self._waking = None
            drain = self._wake(True)
        if drain is not None:
            self._start(drain)

    def _recruit(self) -> _Drain | None:
        if self._collector is not None or not self._queue.requests or len(self._drains) >= self._concurrency:
            return None
        self._collector = drain = _Drain()
        self._drains.add(drain)
        return drain

    def _start(self, drain: _Drain) -> None:
        try:
            future = self._executor.submit(self._drain, drain)
        except BaseException as error:  # the executor, or the interpreter, is shut down; it is full; Ctrl-C
            self._lose(drain, str(error) or type(error).__name__)
            if not isinstance(error, Exception):
                raise
        else:
            future.add_done_callback(lambda future: self._ended(drain, future))

    def _ended(self, drain: _Drain, future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:  # a fault of ours
            _log.error("torchgil's batcher failed", exc_info=error)
        self._lose(drain, "it dropped the batch's turn" if error is None else f"it failed with {error!r}")

    def _lose(self, drain: _Drain, why: str) -> None:
        """Notice a drain that the executor will not run; a no-op after a drain that ran."""
        with self._lock:
            if drain not in self._drains:
                return
            self._leave(drain)
            stranded = self._drop(drain.requests())
            self._ledger.dropped += len(stranded)
            if not self._drains:
                stranded += self._drop_all()
        self._fail(stranded, BatcherClosed(f"the batcher's executor takes no more work: {why}"))

    def _drain(self, drain: _Drain) -> None:
        with self._lock:
            if drain not in self._drains:
                return  # given up by _lose, and run all the same
            drain.ident = threading.get_ident()
        while self._next(drain):
            batch = drain.batch
            try:
                results = self._run(batch, drain.key)
            except BaseException as error:  # a fault of ours; nobody may be left waiting for it
                _log.exception("torchgil's batcher failed on a batch")
                self.settle_failed(batch, error)
                results = None
            now_s = time.monotonic()
            drain.lasted_s = self._lasted_s = now_s - drain.took_s
            for request in batch:
                request.payload = None  # not under the lock: to free a tensor releases the GIL
            if results is not None:
                if not drain.finished:
                    drain.finished_s = now_s
                drain.finished.append((batch, results))
            drain.batch = []
            del batch, results, request  # this thread may wait long

    def _next(self, drain: _Drain) -> bool:
        """Take the next batch for `drain`, and tell what it has finished unless that can wait for this batch.

        Returns:
            False where there is no batch, and the drain has left.
        """
        while True:
            tell, successor = drain.finished, None
            with self._lock:
                if self._collector is None:
                    self._collector = drain
                if self._collector is drain:
                    now_s = time.monotonic()
                    batch, key = self._queue.take(now_s, flush=self._closed)
                    if batch:
                        in_time = now_s + drain.lasted_s < drain.finished_s + self._together_s
                        if in_time and key == drain.key:
                            tell = []
                        drain.batch, drain.key, drain.took_s = batch, key, now_s
                        self._ledger.took(batch, now_s)
                        self._collector = None
                        self._admit()
                        successor = self._recruit()
                    elif not tell and self._wait(now_s):
                        continue
                if not drain.batch and not tell:
                    self._leave(drain)
                    return False
            if successor is not None:
                self._start(successor)
            if tell:
                self.settle(tell)
                drain.finished = []
                if drain.batch:
                    self._told.unpark()  # otherwise as this worker stops
            if drain.batch:
                return True

    def _is_worker(self) -> bool:
        return any(drain.ident == threading.get_ident() for drain in self._drains)

    def _untold(self) -> list[tuple[list[Request], Sequence[Any]]]:
        return [batch for drain in self._drains for batch in drain.finished]

    def _wait(self, now_s: float) -> bool:
        """Wait until there may be a batch; False where there is none to wait for."""
        if self._queue.requests:
            wait_s = self._queue.due_s() - now_s
        elif self._linger_s and not self._closed:
            wait_s, self._lingering = self._linger_s, True
        else:
            return False
        self._collection_awaited = True
        self._lock.release()
        try:
            woken = self._collection.park(max(wait_s, 0.0), self._told)
        finally:
            self._lock.acquire()
            self._collection_awaited = self._lingering = False
        return woken or bool(self._queue.requests)

    def _leave(self, drain: _Drain) -> None:
        self._drains.discard(drain)
        if self._collector is drain:
            self._collector = None
        self._told.unpark()
        if not self._drains:
            self._idle.notify_all()

    def close(self, *, drain: bool, timeout_s: float | None) -> bool:
        """Take no more requests and leave nobody waiting.

        Args:
            drain: True: finish what is queued; False: fail it with BatcherClosed.
            timeout_s: How long batches may take to finish; then all that is left fails with BatcherClosed.

        Returns:
            True where every drain has ended, so that the executor is free.
        """
        closed = "the batcher was shut down before it served this request"
        with self._lock:
            self._closed = True
            dropped = self._drop_blocked() if drain else self._drop_all()
            last = self._wake(True)
        self._fail(dropped, BatcherClosed(closed))
        if last is not None:
            self._start(last)
        with self._lock:
            inside = self._is_worker()  # in a done-callback
            finished = inside or self._idle.wait_for(lambda: not self._drains, timeout_s)
            untold = [] if finished else self._untold()
        if untold:
            self.settle(untold)
        with self._lock:
            late: list[Request] = []
            if not finished:
                late = self._drop_all()
                running = self._drop([request for other in self._drains for request in other.requests()])
                self._ledger.dropped += len(running)
                late += running
        self._fail(late, BatcherClosed(f"{closed} (timeout of {timeout_s} s)"))
        self._clock.close()
        return finished and not inside

    def stats(self) -> BatcherStats:
        """Counts and distributions up to now."""
        with self._lock:
            return self._ledger.snapshot(
                queued=self._queue.requests,
                queued_rows=self._queue.rows,
                blocked=len(self._blocked),
                running=sum(
                    request.state == RUNNING for drain in self._drains for request in drain.requests()
                ),
                now_s=time.monotonic(),
            )
