"""Batch requests from many threads and event loops into few calls, and lose none of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from torchgil._checks import flag, function, number, seconds_or_none, whole
from torchgil._copies import NotCopied
from torchgil._threads import set_own_intra_op_threads, usable_cores
from torchgil.serving._collation import Collation
from torchgil.serving._dispatch import Dispatcher
from torchgil.serving._own_work import Bell, amid, later, own_work
from torchgil.serving._pool import check_process
from torchgil.serving._requests import BatcherClosed, QueueFull, Request
from torchgil.serving._row_queue import RowQueue
from torchgil.serving._stats import BatcherStats

__all__ = ["Batcher", "BatcherClosed", "QueueFull"]


class Batcher(NotCopied):
    """Calls `fn` on batches of requests and gives each caller its own rows of the result.

    A request is a tensor, or a pytree of tensors, with a leading row dimension. A batch is the concatenation
    of requests that agree in structure, dtype, device, the other dimensions, `requires_grad` and
    quantisation, in the order they came; `fn(batch)` returns a tensor or pytree of tensors with as many rows.
    A request with tensors that are not concatenated so (sparse, nested, subclasses) is a batch of its own.

    Every request ends exactly once: with its rows, its own error, its cancellation, TimeoutError or
    BatcherClosed. Where a batch fails, its halves are tried again, down to the request that fails alone; `fn`
    must bear to be called again.

    Use it from threads (`submit`, `map`) and from any number of event loops (`await batcher(x)`), all on one
    queue. It has no thread but its executor's.

    Args:
        fn: Called with a batch, in a thread of `executor`.
        max_batch_size: Most rows in a batch; a request with more fails with ValueError.
        max_delay: Seconds that the oldest request may wait for others. 0: a batch is what has come while the
            last one ran. At interpreter exit what is queued is still served, after this delay.
        max_queue: Most requests that wait for a batch.
        on_full: "block": `submit` waits until half of the queue is free, and at least a batch; "raise": it
            raises QueueFull, as it always does in a done-callback or in `fn` itself, for which the batcher
            waits.
        block_timeout: Seconds after which any room will do, out of turn, or else QueueFull; None: for ever.
        timeout: Seconds a request may wait for a batch before TimeoutError; None: any time. In a batch it is
            not timed any more. A task is told on time; a thread when the next batch is formed, so not while
            every worker is busy: limit its own wait with `future.result(timeout)`.
        executor: A thread executor, yours to shut down; None: one of the batcher's own, with `concurrency`
            workers and all usable cores but one for the ops inside.
        concurrency: Batches at once.
        retry_halves: False: where a batch fails, all its requests fail.
        collate: `collate(requests) -> batch`, for requests of any type; they are then never grouped.
        split: `split(result, rows) -> results`, with the rows of each request in order.
        rows: `rows(request) -> int`, counted against `max_batch_size`.
        copy: True: each caller's rows own their memory (a request that was alone in its batch gets what `fn`
            returned). False: they are views of the batch's result, so that a row kept or pickled is the
            whole batch.

    Raises:
        ValueError, TypeError: For arguments that make no sense.

    Warns:
        RuntimeWarning: Where `concurrency` of the batcher's own executor exceeds the usable cores.

    Give `fn` its own `torch.inference_mode()` or `no_grad()`: results with a graph are parts of one batch's,
    and a caller's `backward` would run through its neighbours' rows too.

    Example:
        >>> import torch
        >>> with Batcher(torch.nn.ReLU(), max_delay=0) as batcher:
        ...     batcher.submit(torch.tensor([[-1.0, 2.0]])).result()
        tensor([[0., 2.]])
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        max_batch_size: int = 32,
        max_delay: float = 0.002,
        max_queue: int = 1024,
        on_full: str = "block",
        block_timeout: float | None = None,
        timeout: float | None = None,
        executor: Executor | None = None,
        concurrency: int = 1,
        retry_halves: bool = True,
        collate: Callable[[list[Any]], Any] | None = None,
        split: Callable[[Any, list[int]], Sequence[Any]] | None = None,
        rows: Callable[[Any], int] | None = None,
        copy: bool = True,
    ) -> None:
        function("Batcher: fn", fn)
        for name, given in {"collate": collate, "split": split, "rows": rows}.items():
            if given is not None:
                function(f"Batcher: {name}", given)
        max_batch_size = _count("max_batch_size", max_batch_size)
        max_queue = _count("max_queue", max_queue)
        concurrency = _count("concurrency", concurrency)
        finite = "finite, in seconds, at least 0"
        max_delay = number("Batcher: max_delay", max_delay, 0, sys.float_info.max, wanted=finite)
        if not isinstance(on_full, str) or on_full not in ("block", "raise"):
            raise ValueError(f'Batcher: on_full must be "block" or "raise", got {on_full!r}')
        self._block_timeout = _seconds("block_timeout", block_timeout)
        self._timeout = _seconds("timeout", timeout)
        retry_halves, copy = flag("Batcher: retry_halves", retry_halves), flag("Batcher: copy", copy)
        _check_executor(executor)
        self._own = executor is None
        if executor is None:
            cores = usable_cores()
            if concurrency > cores:
                warnings.warn(
                    f"Batcher: concurrency={concurrency} on {cores} usable cores; batches will take turns",
                    RuntimeWarning,
                    stacklevel=2,
                )
            # One core is left to the callers: ops that want them all spin while a caller's Python holds one.
            share = max(1, (cores - 1) // concurrency)
            executor = ThreadPoolExecutor(
                concurrency, "torchgil-batcher", initializer=set_own_intra_op_threads, initargs=(share,)
            )
        self._fn = fn
        self._executor = executor
        self._max_batch_size = max_batch_size
        self._collation = Collation(collate, split, rows, copy=copy)
        self._pid = os.getpid()
        self._dispatcher = Dispatcher(
            self._answer,
            RowQueue(max_batch_size, max_delay, max_queue),
            executor,
            concurrency=concurrency,
            retry_halves=retry_halves,
            raise_when_full=on_full == "raise",
        )

    def submit(self, x: Any, *, timeout: float | None = None) -> Future[Any]:
        """Queue the request `x`.

        Args:
            x: A tensor or pytree of tensors with a leading row dimension.
            timeout: Seconds to wait for a batch, in place of the batcher's; waiting for room counts.

        Returns:
            A future of `fn`'s result for these rows. What is wrong with `x` itself shows there.

        Raises:
            QueueFull: No room, or none in time.
            BatcherClosed: After `shutdown`.
            RuntimeError: In a forked child.
        """
        check_process("Batcher", self._pid)
        timeout = self._timeout if timeout is None else _seconds("timeout", timeout)
        future: Future[Any] = Future()
        try:
            request = self._request(x, timeout, future)
        except Exception as error:
            future.set_exception(error)
            return future
        try:
            self._dispatcher.offer(request)
            room = request.room
            if room is not None:
                limits = [limit for limit in (timeout, self._block_timeout) if limit is not None]
                if not room.wait(min(limits, default=None)):
                    self._dispatcher.give_up(request)
                    room.wait()  # there was room just now, or it is told why there is none
            if request.refusal is not None:
                raise request.refusal
        except BaseException:  # refused, or Ctrl-C: the caller never gets this future
            future.cancel()
            raise
        return future

    async def __call__(self, x: Any, *, timeout: float | None = None) -> Any:
        """Await `fn`'s result for the request `x`, on the running event loop.

        A task that is cancelled withdraws its request. A full queue is awaited, or raises, as `on_full` says.

        Args:
            x: As for `submit`.
            timeout: As for `submit`. `asyncio.timeout` limits the whole wait.

        Returns:
            `fn`'s result for these rows.

        Raises:
            TimeoutError: In no batch in time; on Python 3.10, where asyncio's is another, it is both.
            QueueFull, BatcherClosed, RuntimeError: As for `submit`; otherwise what is wrong with `x`, or what
                `fn` raised.

        Example:
            >>> import asyncio, torch
            >>> async def double():
            ...     async with Batcher(lambda x: 2 * x, max_delay=0) as batcher:
            ...         return await batcher(torch.ones(1, 2))
            >>> asyncio.run(double())
            tensor([[2., 2.]])
        """
        check_process("Batcher", self._pid)
        timeout = self._timeout if timeout is None else _seconds("timeout", timeout)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        request = self._request(x, timeout, future, loop)
        self._dispatcher.offer(request)
        timers = []
        if timeout is not None:
            timers.append(loop.call_later(timeout, self._dispatcher.give_up, request, True))
        if self._block_timeout is not None and request.state == "blocked":
            timers.append(loop.call_later(self._block_timeout, self._dispatcher.give_up, request))
        try:
            return await future  # cancelled with its task
        finally:
            for timer in timers:
                timer.cancel()

    def map(self, inputs: Iterable[Any], *, timeout: float | None = None) -> Iterator[Any]:
        """Submit every request now; yield the results in order.

        Args:
            inputs: Requests; exhausted before the first result, as `Executor.map` does.
            timeout: As for `submit`, for each.

        Returns:
            An iterator of the results.

        Raises:
            As `submit` and its futures; what is not yielded is then cancelled.
        """
        requests: list[Future[Any]] = []
        try:
            for x in inputs:
                requests.append(self.submit(x, timeout=timeout))  # noqa: PERF401  (cancelled below)
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        requests.reverse()
        return _results(requests)

    def stats(self) -> BatcherStats:
        """Counts, batch sizes and waits since the batcher was made; see `BatcherStats`."""
        check_process("Batcher", self._pid)
        return self._dispatcher.stats()

    def shutdown(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and leave nobody waiting: each has its result or BatcherClosed when this
        returns.

        May be called again, from any thread, also from a signal handler, a finalizer, a done-callback and
        whatever else runs in the executor. It does not wait in a thread of the executor, nor where a handler
        or finalizer calls it amid another call of a batcher or pool.

        Args:
            drain: True: serve what is queued; False: fail it with BatcherClosed. Batches that run are
                finished.
            timeout: Seconds to wait for batches; then all that is left, running or not, fails with
                BatcherClosed.
        """
        if os.getpid() != self._pid:
            return  # nothing of it lives here, and the parent's locks may be held for ever
        timeout = _seconds("timeout", timeout)
        over = Bell()
        may_wait = self._dispatcher.close(drain=drain, over=over.ring)
        self._finish(over.wait(timeout) if may_wait else None, timeout)

    async def aclose(self, drain: bool = True, timeout: float | None = None) -> None:
        """`shutdown` without blocking the event loop.

        Args:
            drain: As for `shutdown`.
            timeout: As for `shutdown`, in seconds.
        """
        if os.getpid() != self._pid:
            return
        timeout = _seconds("timeout", timeout)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended = None
        if self._dispatcher.close(drain=drain, over=functools.partial(_tell_loop, over)):
            await asyncio.wait([over], timeout=timeout)
            ended = over.done()
        self._finish(ended, timeout)

    def _finish(self, ended: bool | None, timeout: float | None) -> None:
        """After `close`, whose turns have ended or, in time, not; None: nobody waited for them."""
        if ended is False:
            self._dispatcher.abandon(f"timeout of {timeout} s")
        if self._own:
            shut_down = functools.partial(self._executor.shutdown, wait=ended is True)
            if amid():
                later(shut_down)
            else:
                own_work(shut_down)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.shutdown(drain=not _interrupts(exc_type))  # Ctrl-C: finish what runs, no more
        except KeyboardInterrupt:
            self.shutdown(drain=False, timeout=0)
            raise

    async def __aenter__(self) -> Batcher:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        await self.aclose(drain=not _interrupts(exc_type))

    def _request(
        self,
        x: Any,
        timeout: float | None,
        future: Future[Any] | asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Request:
        submitted_s = time.monotonic()
        try:
            payload, rows, key = self._collation.prepare(x)
            if rows > self._max_batch_size:
                raise ValueError(
                    f"a request of {rows} rows is larger than max_batch_size={self._max_batch_size}; "
                    "send it in parts or make the batcher's max_batch_size larger"
                )
        except Exception:
            self._dispatcher.count_refused()
            raise
        expires_s = math.inf if timeout is None else submitted_s + timeout
        return Request(payload, rows, key, submitted_s, expires_s, future, loop)

    def _answer(self, batch: list[Request]) -> Sequence[Any]:
        joined = self._collation.join([request.payload for request in batch], batch[0].key)
        return self._collation.share(self._fn(joined), [request.rows for request in batch])


def _results(requests: list[Future[Any]]) -> Iterator[Any]:
    try:
        while requests:
            result = requests[-1].result()
            requests.pop()
            yield result
    finally:
        for request in requests:
            request.cancel()


def _interrupts(exc_type: type[BaseException] | None) -> bool:
    # On an event loop, Ctrl-C is the cancellation of its main task.
    return exc_type is not None and issubclass(exc_type, KeyboardInterrupt | asyncio.CancelledError)


def _tell_loop(future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
        future.get_loop().call_soon_threadsafe(_tell_future, future)


def _tell_future(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _seconds(name: str, value: float | None) -> float | None:
    return seconds_or_none(f"Batcher: {name}", value)


def _count(name: str, value: int) -> int:
    return whole(f"Batcher: {name}", value, 1, wanted="at least 1, an integer")


def _check_executor(executor: Executor | None) -> None:
    if executor is None:
        return
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        got = executor.__name__ if isinstance(executor, type) else type(executor).__name__
        raise TypeError(f"Batcher: executor must be an Executor, got {got}")
    interpreters = getattr(concurrent.futures, "InterpreterPoolExecutor", ())  # since Python 3.14
    if isinstance(executor, (ProcessPoolExecutor, interpreters)):
        name = type(executor).__name__
        raise TypeError(f"Batcher: executor must run threads of this process and interpreter, got {name}")
