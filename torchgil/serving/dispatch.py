"""The moving part of a batcher: who takes the next batch, where it runs, and how it all ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from torchgil.serving.book import BatcherClosed, RequestBook
from torchgil.serving.requests import RUNNING, SETTLED, Request, ThreadRequest
from torchgil.serving.row_queue import RowQueue
from torchgil.serving.stats import BatcherStats

__all__ = ["Dispatcher"]

_log = logging.getLogger("torchgil")


class _Drain:
    """One worker's turn: it takes batches until there are none, or another drain collects the next."""

    __slots__ = ("batch", "ident")

    def __init__(self) -> None:
        self.batch: list[Request] = []
        self.ident = 0  # of its thread, once it runs


class Dispatcher(RequestBook):
    """Runs batches on an executor.

    There is no thread of its own and no polling. While requests wait, exactly one drain is the collector: it
    was handed to the executor, or waits for the oldest request's deadline, or is about to look. When it has
    its batch it appoints the next collector, up to `concurrency` drains. An idle batcher has none.

    Args:
        run: `run(batch, key)` computes and calls `settle` or `settle_failed`.
        executor: Where drains run.
        queue: The queue; this object's from now on.
        concurrency: Most drains at once.
        raise_when_full: True: a full queue raises; False: it blocks.
    """

    def __init__(
        self,
        run: Callable[[list[Request], Any], None],
        executor: Executor,
        queue: RowQueue,
        *,
        concurrency: int,
        raise_when_full: bool,
    ) -> None:
        super().__init__(queue, raise_when_full=raise_when_full)
        self._run = run
        self._executor = executor
        self._concurrency = concurrency
        self._idle = threading.Condition(self._lock)  # shutdown waits for the drains
        self._drains: set[_Drain] = set()
        self._collector: _Drain | None = None

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
        with self._lock:
            if request.state == SETTLED:
                return True  # its time was up before it came here, and its future says so
            if self._closed or self._blocked or self._queue.full:
                refusal = self._block(request, key)
                drain, admitted = None, False
            else:
                self._push(request, key)
                drain = self._recruit() if self._collector is None else None
                refusal, admitted = None, True
        if drain is not None:
            self._start(drain)
        if refusal is not None:
            self._forget([request])
            raise refusal
        return admitted

    def _recruit(self) -> _Drain | None:
        if self._collector is not None or not self._queue.requests or len(self._drains) >= self._concurrency:
            return None
        self._collector = drain = _Drain()
        self._drains.add(drain)
        return drain

    def _start(self, drain: _Drain) -> None:
        try:
            future = self._executor.submit(self._drain, drain)
        except RuntimeError as error:  # the executor, or the interpreter, is shut down
            self._lose(drain, str(error))
        else:
            future.add_done_callback(lambda _: self._lose(drain, "it dropped the batch's turn"))

    def _lose(self, drain: _Drain, why: str) -> None:
        """Notice a drain that the executor will not run; a no-op after a drain that ran."""
        with self._lock:
            if drain not in self._drains:
                return
            self._drains.discard(drain)
            if self._collector is drain:
                self._collector = None
            stranded = [] if self._drains else self._drop_all()
            self._idle.notify_all()
        self._fail(stranded, BatcherClosed(f"the batcher's executor takes no more work: {why}"))

    def _drain(self, drain: _Drain) -> None:
        with self._lock:
            if drain not in self._drains:
                return  # given up by _lose, and run all the same
            drain.ident = threading.get_ident()
        while True:
            with self._lock:
                batch, key = self._collect()
                drain.batch = batch
                self._collector = None
                if not batch:
                    self._leave(drain)
                    return
                self._admit()
                successor = self._recruit()
            if successor is not None:
                self._start(successor)
            try:
                self._run(batch, key)
            except BaseException as error:  # a fault of ours; nobody may be left waiting for it
                _log.exception("torchgil's batcher failed on a batch")
                self.settle_failed(batch, error)
            with self._lock:
                drain.batch = []
                if self._collector is not None:
                    self._leave(drain)
                    return
                self._collector = drain

    def _collect(self) -> tuple[list[Request], Any]:
        while self._queue.requests:
            now_s = time.monotonic()
            batch, key = self._queue.take(now_s, flush=self._closed)
            if batch:
                self._ledger.took(batch, now_s)
                return batch, key
            self._due_awaited = True
            self._due.wait(min(self._queue.due_s() - now_s, threading.TIMEOUT_MAX))
            self._due_awaited = False
        return [], None

    def _leave(self, drain: _Drain) -> None:
        self._drains.discard(drain)
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
            self._due.notify_all()
        self._fail(dropped, BatcherClosed(closed))
        with self._lock:
            inside = any(other.ident == threading.get_ident() for other in self._drains)  # in a done-callback
            finished = inside or self._idle.wait_for(lambda: not self._drains, timeout_s)
            late: list[Request] = []
            if not finished:
                late = self._drop_all()
                running = self._drop([request for other in self._drains for request in other.batch])
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
                running=sum(request.state == RUNNING for drain in self._drains for request in drain.batch),
                now_s=time.monotonic(),
            )
