"""The accounts of a batcher: who waits, and how each request ends, exactly once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from torchgil.ops.parker import Parker
from torchgil.serving.expiry import ExpiryClock
from torchgil.serving.ledger import BatcherLedger
from torchgil.serving.requests import (
    BLOCKED,
    NEW,
    QUEUED,
    REFUSED,
    RUNNING,
    SETTLED,
    Request,
    ThreadRequest,
    fail,
    resolve,
)
from torchgil.serving.row_queue import RowQueue

__all__ = ["BatcherClosed", "QueueFull", "RequestBook"]


class BatcherClosed(RuntimeError):  # noqa: N818  (as queue.Full is named)
    """The batcher was shut down: it takes no request, or it dropped this one without a result."""


class QueueFull(RuntimeError):  # noqa: N818
    """The batcher's queue had no room for the request, with `on_full="raise"` or for as long as it could
    wait."""


class RequestBook:
    """Keeps the requests that wait or run, and settles them.

    Every request is settled under `_lock`, by the one party that finds it unsettled, and its future is told
    outside the lock. Underscored methods that do not take the lock are called under it.

    Args:
        queue: The queue; this object's from now on.
        raise_when_full: True: a full queue raises; False: it blocks.
    """

    def __init__(self, queue: RowQueue, *, raise_when_full: bool) -> None:
        self._queue = queue
        self._raise_when_full = raise_when_full
        self._lock = threading.RLock()  # it knows its owner; nobody takes it twice
        self._collection = Parker()  # whoever collects the next batch may wait here, without the lock
        self._collection_awaited = False
        self._closed = False
        self._blocked: deque[tuple[Request, Any]] = deque()  # with their keys
        self._clock = ExpiryClock(self.expire)
        self._timed = False  # some request had a timeout
        self._ledger = BatcherLedger()

    # Waiting for room.

    def _block(self, request: Request, key: Any) -> BatcherClosed | QueueFull | None:
        """Let `request` wait for room, or say why not."""
        if self._closed or self._raise_when_full:
            request.state = REFUSED
            if self._closed:
                return BatcherClosed("the batcher is shut down; it takes no more requests")
            return QueueFull(f"the batcher's queue is full ({self._queue.requests} requests)")
        if isinstance(request, ThreadRequest) and self._is_worker():
            request.state = REFUSED
            return QueueFull(
                f"the batcher's queue is full ({self._queue.requests} requests), and a done-callback or the "
                "batched function itself must not wait for room: the batcher waits for it"
            )
        request.state = BLOCKED
        if isinstance(request, ThreadRequest):
            request.admitted = threading.Lock()
            request.admitted.acquire()
        self._blocked.append((request, key))
        return None

    def wait_for_room(self, request: ThreadRequest, timeout_s: float | None) -> None:
        """Block the calling thread until the blocked `request` is queued.

        Raises:
            QueueFull: No room within `timeout_s`.
            BatcherClosed: The batcher was shut down meanwhile.
        """
        assert request.admitted is not None
        try:
            timeout_s = -1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
            if not request.admitted.acquire(timeout=timeout_s):
                self.expire_blocked(request)
        except BaseException:  # Ctrl-C: the caller never gets this future
            self.withdraw(request)
            raise
        if request.state == REFUSED:
            if self._closed:
                raise BatcherClosed(
                    "the batcher was shut down while this request waited for room in its queue"
                )
            raise _no_room(request)

    def _push(self, request: Request, key: Any) -> None:
        if self._queue.push(request, key) and self._collection_awaited:
            self._collection.unpark()

    def _admit(self) -> None:
        """Give room that came free to those who wait for it."""
        while self._blocked and not self._queue.full:
            request, key = self._blocked.popleft()
            self._push(request, key)
            if isinstance(request, ThreadRequest) and request.admitted is not None:
                request.admitted.release()

    # How requests end.

    def _is_worker(self) -> bool:
        """Whether the calling thread is one that batches wait for."""
        return False

    def _untold(self) -> list[tuple[list[Request], Sequence[Any]]]:
        """Batches that are done and whose results wait to be told."""
        return []

    def settle(self, finished: Sequence[tuple[Sequence[Request], Sequence[Any]]]) -> None:
        """Deliver the results of batches to those of their requests that still wait for one."""
        live: list[tuple[Request, Any]] = []
        with self._lock:
            for requests, results in finished:
                told = []
                for request, result in zip(requests, results, strict=True):
                    if request.state == RUNNING:
                        request.state = SETTLED
                        told.append((request, result))
                if told:
                    self._ledger.served(told, time.monotonic())
                live += told
        resolve(live)
        if self._timed:
            self._forget([request for request, _ in live])

    def count_refused(self) -> None:
        """A request failed before it was queued, for a fault of its own."""
        with self._lock:
            self._ledger.failed += 1

    def settle_failed(self, requests: Sequence[Request], error: BaseException) -> None:
        """Deliver `error` to those of `requests` that still wait for a result."""
        with self._lock:
            live = self._drop(requests)
            for request in requests:
                request.payload = None
            self._ledger.failed += len(live)
        self._fail(live, error)

    def withdraw(self, request: Request) -> bool:
        """Cancel `request`; True where that came about.

        A batch keeps a thread's request; that of an event loop is given up in a batch too, for its task is
        gone. A finalizer that the garbage collector runs amid this object's own work withdraws nothing.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks
            return False
        with self._lock:
            if request.state == RUNNING and isinstance(request, ThreadRequest):
                return False
            self._ledger.cancelled += request.state in (QUEUED, RUNNING)
            taken = self._take_back(request)
        if taken:
            try:
                if isinstance(request, ThreadRequest):
                    request.set_cancelled()
            finally:  # a done-callback may raise
                self._forget([request])
        return taken

    def expire_blocked(self, request: Request) -> None:
        """Fail `request` with QueueFull if it still waits for room."""
        self.expire(request, only_blocked=True)

    def expire(self, request: Request, *, only_blocked: bool = False) -> None:
        """Fail `request` for lateness: QueueFull while it is blocked, else TimeoutError; in a batch too.

        A result that waits to be told is told instead.
        """
        with self._lock:
            untold = self._untold() if request.state == RUNNING else []
        if untold:
            self.settle(untold)
        with self._lock:
            blocked = request.state == BLOCKED
            if only_blocked and not blocked:
                return
            self._ledger.timed_out += request.state in (NEW, QUEUED, RUNNING)
            taken = self._take_back(request)
        if not taken:
            return
        if not blocked:
            waited_s = time.monotonic() - request.submitted_s
            self._fail(
                [request], TimeoutError(f"the batcher had no result for the request after {waited_s:.3g} s")
            )
        elif isinstance(request, ThreadRequest):
            self._forget([request])  # its caller, in wait_for_room, raises
        else:
            self._fail([request], _no_room(request))

    def _take_back(self, request: Request) -> bool:
        if request.state == QUEUED:
            self._queue.discard(request)
            if not self._queue.requests and self._collection_awaited:
                self._collection.unpark()  # nothing is left to wait for
        elif request.state == BLOCKED:
            self._blocked = deque(entry for entry in self._blocked if entry[0] is not request)
        elif request.state not in (NEW, RUNNING):
            return False
        self._drop([request])
        self._admit()
        return True

    def _drop(self, requests: Iterable[Request]) -> list[Request]:
        """Claim those of `requests` that nobody has settled."""
        live = [request for request in requests if request.state in (NEW, BLOCKED, QUEUED, RUNNING)]
        for request in live:
            blocked = request.state == BLOCKED
            if request.state != RUNNING:  # a batch still reads it
                request.payload = None
            request.state = REFUSED if blocked else SETTLED
            if blocked and isinstance(request, ThreadRequest) and request.admitted is not None:
                request.admitted.release()
        return live

    def _drop_all(self) -> list[Request]:
        """Claim everything that waits; returns what has a future to fail."""
        queued = self._drop(self._queue.clear())
        self._ledger.dropped += len(queued)
        return queued + self._drop_blocked()

    def _drop_blocked(self) -> list[Request]:
        blocked = self._drop([request for request, _ in self._blocked])
        self._blocked.clear()
        return blocked

    def _fail(self, requests: list[Request], error: BaseException) -> None:
        fail(
            [
                request
                for request in requests
                if request.state == SETTLED or not isinstance(request, ThreadRequest)
            ],
            error,
        )
        self._forget(requests)

    def _watch(self, request: ThreadRequest, expires_s: float) -> None:
        request.timed = self._timed = True
        try:
            self._clock.watch(request, expires_s)
        except RuntimeError as error:
            raise BatcherClosed(f"the batcher takes no more requests: {error}") from error

    def _forget(self, requests: Sequence[Request]) -> None:
        if self._timed:
            timed = sum(isinstance(request, ThreadRequest) and request.timed for request in requests)
            if timed:
                self._clock.forget(timed)


def _no_room(request: Request) -> QueueFull:
    waited_s = time.monotonic() - request.submitted_s
    return QueueFull(f"the batcher's queue had no room for the request in {waited_s:.3g} s")
