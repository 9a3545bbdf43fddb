"""One request to a batcher: what is queued, and the future its caller waits on."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BLOCKED",
    "ENDED",
    "QUEUED",
    "RUNNING",
    "BatcherClosed",
    "CallerFuture",
    "QueueFull",
    "Request",
    "refuse",
    "tell",
    "tell_error",
]

# Where a request is. Changed under the batcher's lock alone, so that exactly one party ends it.
BLOCKED = 0  # waits for room in the queue
QUEUED = 1  # waits for a batch
RUNNING = 2  # is in a batch
ENDED = 3  # its outcome is decided; its future has it, or is about to

_log = logging.getLogger("torchgil")


class BatcherClosed(RuntimeError):  # noqa: N818  (as queue.Full is named)
    """The batcher was shut down: it takes no request, or it dropped this one without a result."""


class QueueFull(RuntimeError):  # noqa: N818
    """The batcher's queue had no room for the request, with `on_full="raise"` or for as long as it could
    wait."""


class CallerFuture(Future[Any]):
    """The future that a thread holds of its request.

    Cancelling takes no lock of the batcher's, for the garbage collector may do it amid the batcher's own
    work: it leaves a note, and whoever has the lock next clears the request away.
    """

    def __init__(self, notes: deque[Request]) -> None:
        super().__init__()
        self._notes = notes
        self.request: Request | None = None

    def cancel(self) -> bool:
        """Cancel the request unless a batch has taken it; whoever asks for its place next has it."""
        try:
            return super().cancel()  # a done-callback may raise
        finally:
            request = self.request
            if request is not None and self.cancelled():
                self._notes.append(request)
                self.request = None


@dataclass(eq=False, slots=True)
class Request:
    """What is queued.

    Attributes:
        payload: What a batch is made of.
        rows: How many.
        key: Equal for requests that can share a batch.
        submitted_s: When it came, on the monotonic clock.
        expires_s: When it is late in the queue, on the same clock.
        future: What its caller waits on.
        loop: Where a task awaits it; None: a thread does.
        room: Where a thread waits while the request is blocked.
        refusal: Why there was no room.
    """

    payload: Any
    rows: int
    key: Any
    submitted_s: float
    expires_s: float
    future: CallerFuture | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    state: int = ENDED  # until it is queued
    room: threading.Event | None = None
    refusal: BaseException | None = None

    def claim(self) -> bool:
        """Take the outcome out of a thread's hands; False where it is cancelled. A task's can still be."""
        if isinstance(self.future, CallerFuture):
            self.future.request = None  # its caller may keep it for long
            return self.future.set_running_or_notify_cancel()
        return not self.future.cancelled()


Outcome = tuple[Request, Any, BaseException | None]


def tell(outcomes: Iterable[Outcome]) -> None:
    """Give each request its result, or its error. An event loop is woken once for all its requests."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for request, result, error in outcomes:
        if request.loop is not None:
            by_loop.setdefault(request.loop, []).append((request, result, error))
            continue
        try:
            if error is None:
                request.future.set_result(result)
            else:
                request.future.set_exception(error)
        except BaseException:  # from a done-callback of the caller's; the others must not pay for it
            _log.exception("a done-callback of a batched request raised")
    for loop, of_loop in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell_tasks, of_loop)
        except RuntimeError:
            _log.debug("the event loop of %d batched requests is closed; nobody waits there", len(of_loop))


def _tell_tasks(outcomes: list[Outcome]) -> None:
    for request, result, error in outcomes:
        if request.future.done():
            continue  # its task was cancelled
        if error is None:
            request.future.set_result(result)
        else:
            request.future.set_exception(error)


def tell_error(requests: Sequence[Request], error: BaseException) -> None:
    """Give each request the error, in an instance of its own."""
    own = [error] if len(requests) == 1 else [_another(error) for _ in requests]
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        for i, request in enumerate(requests):
            if request.loop is not None:
                # It would end the coroutine that awaits, the whole loop, or pass for a cancellation.
                cause, own[i] = own[i], RuntimeError(f"the batched function raised {type(error).__name__}")
                own[i].__cause__ = cause
    tell(zip(requests, [None] * len(requests), own, strict=True))


def refuse(requests: Sequence[Request], error: Exception) -> None:
    """Tell those that wait for room that there is none."""
    for request in requests:
        if request.room is not None:
            request.refusal = error if len(requests) == 1 else _another(error)
            request.room.set()
    tell_error([request for request in requests if request.room is None], error)


def _another(error: BaseException) -> BaseException:
    """A copy of `error`: each raise adds to an instance's traceback, and its caller may write to it."""
    own = error
    for make in (copy.copy, _bare):
        try:
            own = make(error)
            own.args = error.args  # an __init__ that makes a message of its arguments was given the message
            break
        except Exception:  # an __init__ that wants other arguments than `args`
            own = error
    own.__traceback__, own.__cause__ = error.__traceback__, error.__cause__
    own.__context__, own.__suppress_context__ = error.__context__, error.__suppress_context__
    if hasattr(own, "__notes__"):
        own.__notes__ = list(own.__notes__)
    return own


def _bare(error: BaseException) -> BaseException:
    own = type(error).__new__(type(error), *error.args)
    own.__dict__.update(error.__dict__)
    return own
