"""One request to a batcher: what is queued, and the future its caller waits on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from torchgil.serving.lean_future import LeanFuture, set_results

__all__ = [
    "BLOCKED",
    "NEW",
    "QUEUED",
    "REFUSED",
    "RUNNING",
    "SETTLED",
    "LoopRequest",
    "Request",
    "ThreadRequest",
    "fail",
    "resolve",
]

# Where a request is. Changed under the batcher's lock alone, so that exactly one party settles it.
NEW = -1  # its deadline may be watched already
BLOCKED = 0  # waits for room in the queue
QUEUED = 1  # waits for a batch
RUNNING = 2  # is in a batch
SETTLED = 3  # its outcome is decided; its future has it, or is about to
REFUSED = 4  # was never queued

_log = logging.getLogger("torchgil")


class ThreadRequest(LeanFuture):
    """A request from a thread: the future that the caller holds and the entry in the queue are one object.

    For `concurrent.futures` it stays pending until it is settled; `cancel` and `running` ask the batcher
    instead.
    """

    state = NEW
    group: Any = None
    timed = False  # has a timeout, which the batcher's clock watches
    admitted: threading.Lock | None = None  # held while the request is blocked
    attend: Callable[[ThreadRequest], None] | None = None  # of a lone request: waits for a moment

    def __init__(
        self, withdraw: Callable[[ThreadRequest], bool], payload: Any, rows: int, submitted_s: float
    ) -> None:
        self._withdraw = withdraw
        self.payload = payload
        self.rows = rows
        self.submitted_s = submitted_s

    def cancel(self) -> bool:
        """Withdraw the request unless a batch has taken it; its place in the queue is free at once.

        Returns:
            True where the request is cancelled.
        """
        return self._withdraw(self) or self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """As `concurrent.futures.Future.result`."""
        attend = self.attend
        if attend is not None and (timeout is None or timeout >= 0.001):
            attend(self)
            self.attend = None
        return super().result(timeout)

    def running(self) -> bool:
        """True while a batch holds the request."""
        return self.state == RUNNING

    def set_cancelled(self) -> None:
        """Deliver the cancellation, to `concurrent.futures.wait` too."""
        super().cancel()
        self.set_running_or_notify_cancel()


class LoopRequest:
    """A request that a task on an event loop awaits."""

    __slots__ = ("future", "group", "loop", "payload", "rows", "state", "submitted_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, payload: Any, rows: int, submitted_s: float) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.payload = payload
        self.rows = rows
        self.submitted_s = submitted_s
        self.state = NEW
        self.group: Any = None


Request = ThreadRequest | LoopRequest


def resolve(outcomes: Iterable[tuple[Request, Any]]) -> None:
    """Give each request its result. Each event loop is woken once, however many of its requests there are."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    of_threads: list[tuple[ThreadRequest, Any]] = []
    for request, result in outcomes:
        if isinstance(request, ThreadRequest):
            of_threads.append((request, result))
        else:
            results = by_loop.get(request.loop)
            if results is None:
                results = by_loop[request.loop] = []
            results.append((request.future, result))
    if of_threads:
        for waited_for, result in set_results(of_threads):
            try:
                waited_for.set_result(result)
            except BaseException:  # from a done-callback of the caller's; the others must not pay for it
                _log.exception("a done-callback of a batched request raised")
    for loop, results in by_loop.items():
        _call_on(loop, _set_results, results)


def fail(requests: Iterable[Request], error: BaseException) -> None:
    """Give each request the same error; event loops as in `resolve`."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[Any]]] = {}
    for request in requests:
        if isinstance(request, ThreadRequest):
            try:
                request.set_exception(error)
            except BaseException:
                _log.exception("a done-callback of a batched request raised")
        else:
            by_loop.setdefault(request.loop, []).append(request.future)
    for loop, futures in by_loop.items():
        _call_on(loop, _set_errors, futures, error)


def _call_on(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        _log.debug("the event loop of %d batched requests is closed; nobody waits there", len(args[0]))


def _set_results(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if not future.done():
            future.set_result(result)


def _set_errors(futures: list[asyncio.Future[Any]], error: BaseException) -> None:
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        # It would end the coroutine that awaits, the whole loop, or pass for a cancellation.
        cause, error = error, RuntimeError(f"the batched function raised {type(error).__name__}")
        error.__cause__ = cause
    for future in futures:
        if not future.done():
            future.set_exception(error)
