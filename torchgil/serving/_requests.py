"""A request to a batcher, and how its caller is told what became of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Literal

from torchgil.serving._own_work import Bell

__all__ = ["BatcherClosed", "QueueFull", "Request", "RequestTimeout", "tell", "tell_error", "tell_late"]

_log = logging.getLogger("torchgil")
_MAIN = threading.main_thread()  # where Ctrl-C is raised


class BatcherClosed(RuntimeError):  # noqa: N818  (as queue.Full is named)
    """The batcher was shut down: it takes no request, or it dropped this one without a result."""


class QueueFull(RuntimeError, queue.Full):  # noqa: N818
    """The batcher's queue had no room for the request, with `on_full="raise"` or for as long as it could
    wait. It is a `queue.Full`, too."""


# On Python 3.10 asyncio and concurrent.futures have timeouts of their own. A late request's is all of them,
# so that it is caught by whichever name its caller has for it.
_TIMEOUTS = tuple(dict.fromkeys((TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)))
RequestTimeout: type[Exception] = (
    TimeoutError if len(_TIMEOUTS) == 1 else type("RequestTimeout", _TIMEOUTS, {})
)


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
        state: Changed under the batcher's lock alone, so that exactly one party ends it. "blocked": waits for
            room; "queued": for a batch; "taken": in a batch, or about to be told of an error, and not
            cancelled; "ended": its outcome is decided, and its future has it, or is about to.
        room: What a thread waits for while it is blocked.
        refusal: Why there was no room for it.
    """

    payload: Any
    rows: int
    key: Any
    submitted_s: float
    expires_s: float
    future: Future[Any] | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    state: Literal["new", "blocked", "queued", "taken", "ended"] = "new"
    room: Bell | None = None
    refusal: BaseException | None = None

    def take(self) -> bool:
        """Take it out of its caller's hands; False where it was cancelled. A task can still withdraw."""
        if isinstance(self.future, Future):
            # It runs already where Ctrl-C came in just here before. A caller who gave it an outcome himself
            # has what he wants, and the others must not pay for it.
            answered = self.future.done() and not self.future.cancelled()
            taken = not answered and (self.future.running() or self.future.set_running_or_notify_cancel())
        else:
            taken = not self.future.cancelled()
        self.state = "taken" if taken else "ended"
        return taken

    def let_in(self) -> None:
        """Tell the thread that waits for room that there is some."""
        room, self.room = self.room, None
        if room is not None:
            room.ring()


def tell(requests: Sequence[Request], outcomes: Sequence[Any], *, failed: bool = False) -> None:
    """Give each request its result, or with `failed` its error. An event loop is woken once for all of its
    requests; a blocked thread is told where it waits. To tell twice does no harm."""
    interrupted = None
    of_loops: defaultdict[asyncio.AbstractEventLoop, list[tuple[Any, Any]]] = defaultdict(list)
    for request, outcome in zip(requests, outcomes, strict=True):
        if request.loop is not None:
            of_loops[request.loop].append((request.future, outcome))
            continue
        if request.room is not None:
            request.refusal = outcome
            request.let_in()
            continue
        tell_it = request.future.set_exception if failed else request.future.set_result
        while True:
            try:
                tell_it(outcome)
            except InvalidStateError:
                pass
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is _MAIN:
                    interrupted = error  # Ctrl-C, before it was told or after: tell all, then raise
                    continue
                # From a done-callback of the caller's; the others must not pay for it.
                _log.exception("a done-callback of a batched request raised")
            break
    for loop, told in of_loops.items():
        try:
            loop.call_soon_threadsafe(_tell_tasks, told, failed)
        except RuntimeError:
            _log.debug("the event loop of %d batched requests is closed; nobody waits there", len(told))
    if interrupted is not None:
        raise interrupted


def _tell_tasks(told: list[tuple[asyncio.Future[Any], Any]], failed: bool) -> None:
    for future, outcome in told:
        if future.done():
            continue  # its task was cancelled
        if failed:
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def tell_error(requests: Sequence[Request], error: BaseException) -> None:
    """Give each request the error, in an instance of its own."""
    own = [error] if len(requests) == 1 else [_another(error) for _ in requests]
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        for i, request in enumerate(requests):
            if request.loop is not None:
                # It would end the coroutine that awaits, the whole loop, or pass for a cancellation.
                cause, own[i] = own[i], RuntimeError(f"the batched function raised {type(error).__name__}")
                own[i].__cause__ = cause
    tell(requests, own, failed=True)


def tell_late(requests: Sequence[Request], error: type[Exception]) -> None:
    """Fail requests that waited for too long: QueueFull, for room; or RequestTimeout, for a batch."""
    missed = "room in its queue" if error is QueueFull else "result"
    for request in requests:
        waited_s = time.monotonic() - request.submitted_s
        tell_error([request], error(f"the batcher had no {missed} for the request after {waited_s:.3g} s"))


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
