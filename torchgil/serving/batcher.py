"""Batch requests from many threads and event loops into few calls, and lose none of them."""

from __future__ import annotations

import asyncio
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from torchgil.serving.book import BatcherClosed, QueueFull
from torchgil.serving.collation import Collation
from torchgil.serving.dispatch import Dispatcher
from torchgil.serving.pool import ThreadPool
from torchgil.serving.process import HomeProcess
from torchgil.serving.requests import SETTLED, LoopRequest, Request, ThreadRequest
from torchgil.serving.row_queue import RowQueue
from torchgil.serving.stats import BatcherStats
from torchgil.threads import usable_cores

__all__ = ["Batcher", "BatcherClosed", "QueueFull"]

_TOGETHER_S = 0.002  # 256 requests of a small MLP in one wake-up of their event loop
_LINGER_S = 0.1  # the interpreter's exit waits for it
_AWAKE_S = 0.0002  # a few wake-ups of a thread: whoever waits longer loses little by one


class Batcher:
    """Calls `fn` on batches of requests and gives each caller its own rows of the result.

    A request is a tensor, or a pytree of tensors, with a leading row dimension. A batch is the concatenation
    of requests that agree in structure, dtype, device and the other dimensions, in the order they came;
    `fn(batch)` returns a tensor or pytree of tensors with as many rows. Results are views of what `fn`
    returned: keep one row for long, and you keep the batch (`clone` it).

    Every request ends exactly once: with its rows, its own error, its cancellation, TimeoutError or
    BatcherClosed. Where a batch fails, its halves are tried again, down to the request that fails alone; `fn`
    must bear to be called again.

    Use it from threads (`submit`, `map`) and from any number of event loops (`await batcher(x)`), all on one
    queue.

    Args:
        fn: Called with a batch, in a thread of `executor`.
        max_batch_size: Most rows in a batch; a request with more fails with ValueError.
        max_delay: Seconds that the oldest request may wait for others. Where batches take less than this, and
            less than 2 ms, a result may wait for the next batch's, at most until a timeout, and requests of
            an event loop for its next turn. 0: a batch is what is there, results are told at once, and the
            caller of a lone request that will take less than 0.1 ms waits for it awake, keeping a core busy
            for 0.2 ms at most (not with an `executor` of yours, nor on one core).
        max_queue: Most requests that wait for a batch.
        on_full: "block": `submit` waits for room; "raise": it raises QueueFull, as it always does in a
            done-callback or in `fn` itself, for which the batcher waits.
        block_timeout: Seconds to wait for room before QueueFull; None: for ever.
        timeout: Seconds each request may take from `submit` to its result; None: any time.
        executor: A thread executor, yours to shut down; None: a `ThreadPool` of the batcher's own, with
            `concurrency` workers and all usable cores but one for the ops inside.
        concurrency: Batches at once.
        retry_halves: False: where a batch fails, all its requests fail.
        collate: `collate(requests) -> batch`, for requests of any type; they are then never grouped.
        split: `split(result, rows) -> results`, with the rows of each request in order.
        rows: `rows(request) -> int`, counted against `max_batch_size`.

    Raises:
        ValueError, TypeError: For arguments that make no sense.

    Warns:
        RuntimeWarning: As `ThreadPool`, where `concurrency` exceeds the usable cores.

    Give `fn` its own `torch.inference_mode()` or `no_grad()`: results with a graph are views of one batch,
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
    ) -> None:
        if not callable(fn):
            raise TypeError(f"Batcher: fn must be callable, got {type(fn).__name__}")
        for name, value in (
            ("max_batch_size", max_batch_size),
            ("max_queue", max_queue),
            ("concurrency", concurrency),
        ):
            if operator.index(value) < 1:
                raise ValueError(f"Batcher: {name} must be at least 1, got {value}")
        if not (math.isfinite(max_delay) and max_delay >= 0):
            raise ValueError(
                f"Batcher: max_delay must be a finite number of seconds, at least 0, got {max_delay}"
            )
        if on_full not in ("block", "raise"):
            raise ValueError(f'Batcher: on_full must be "block" or "raise", got {on_full!r}')
        if executor is not None and not callable(getattr(executor, "submit", None)):
            raise TypeError(f"Batcher: executor must be an Executor, got {type(executor).__name__}")
        if isinstance(executor, ProcessPoolExecutor):
            raise TypeError("Batcher: executor must run threads of this process, got ProcessPoolExecutor")
        self._fn = fn
        self._max_batch_size = max_batch_size
        self._block_timeout = _seconds("block_timeout", block_timeout)
        self._timeout = _seconds("timeout", timeout)
        self._retry_halves = retry_halves
        self._collation = Collation(collate, split, rows)
        self._own_pool: ThreadPool | None = None
        if executor is None:
            # One core is left to the callers: ops that want them all spin while a caller's Python holds one.
            share = max(1, (usable_cores() - 1) // concurrency)
            executor = self._own_pool = ThreadPool(
                concurrency, intra_op_threads=share, thread_name_prefix="torchgil-batcher"
            )
        self._home = HomeProcess("Batcher")
        self._dispatcher = Dispatcher(
            self._run_batch,
            executor,
            RowQueue(max_batch_size, max_delay, max_queue),
            concurrency=concurrency,
            together_s=min(max_delay, _TOGETHER_S),
            linger_s=0.0 if self._own_pool is None else _LINGER_S,
            awake_s=_AWAKE_S if self._own_pool and max_delay == 0 and usable_cores() > 1 else 0.0,
            raise_when_full=on_full == "raise",
        )

    def submit(self, x: Any, *, timeout: float | None = None) -> ThreadRequest:
        """Queue the request `x`.

        Args:
            x: A tensor or pytree of tensors with a leading row dimension.
            timeout: Seconds until TimeoutError, in place of the batcher's; waiting for room counts.

        Returns:
            A `concurrent.futures.Future` of `fn`'s result for these rows. What is wrong with `x` itself shows
            there.

        Raises:
            QueueFull: No room, or none in time.
            BatcherClosed: After `shutdown`.
            RuntimeError: In a forked child.
        """
        self._home.check()
        if timeout is None:
            timeout = self._timeout
        else:
            _seconds("timeout", timeout)
        submitted_s = time.monotonic()
        try:
            payload, rows, key = self._collation.prepare(x)
            if rows > self._max_batch_size:
                raise self._too_large(rows)
        except Exception as error:
            refused = ThreadRequest(self._withdraw, None, 0, submitted_s)
            refused.state = SETTLED
            self._dispatcher.count_refused()
            refused.set_exception(error)
            return refused
        request = ThreadRequest(self._withdraw, payload, rows, submitted_s)
        if not self._dispatcher.offer(request, key, None if timeout is None else submitted_s + timeout):
            limits = [limit for limit in (timeout, self._block_timeout) if limit is not None]
            self._dispatcher.wait_for_room(request, min(limits, default=None))
        return request

    async def __call__(self, x: Any, *, timeout: float | None = None) -> Any:
        """Await `fn`'s result for the request `x`, on the running event loop.

        A task that is cancelled withdraws its request. A full queue is awaited, or raises, as `on_full` says.

        Args:
            x: As for `submit`.
            timeout: As for `submit`.

        Returns:
            `fn`'s result for these rows.

        Raises:
            TimeoutError: No result in time.
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
        self._home.check()
        if timeout is None:
            timeout = self._timeout
        else:
            _seconds("timeout", timeout)
        try:
            payload, rows, key = self._collation.prepare(x)
            if rows > self._max_batch_size:
                raise self._too_large(rows)
        except Exception:
            self._dispatcher.count_refused()
            raise
        loop = asyncio.get_running_loop()
        request = LoopRequest(loop, payload, rows, time.monotonic())
        admitted = self._dispatcher.offer(request, key)
        timers: list[asyncio.TimerHandle] = []
        if timeout is not None:
            timers.append(loop.call_later(timeout, self._dispatcher.expire, request))
        if not admitted and self._block_timeout is not None:
            timers.append(loop.call_later(self._block_timeout, self._dispatcher.expire_blocked, request))
        try:
            return await request.future
        except asyncio.CancelledError:
            self._withdraw(request)
            raise
        finally:
            for timer in timers:
                timer.cancel()

    def map(self, inputs: Iterable[Any], *, timeout: float | None = None) -> Iterator[Any]:
        """Submit every request now; yield the results in order.

        Args:
            inputs: Requests; exhausted before the first result, as `Executor.map` does.
            timeout: As for `submit`, for each.

        Raises:
            As `submit` and its futures; what is not yielded is then cancelled.
        """
        requests: list[ThreadRequest] = []
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
        self._home.check()
        return self._dispatcher.stats()

    def shutdown(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and leave nobody waiting: each has its result or BatcherClosed when this
        returns.

        May be called again, from any thread, also from a done-callback (then it does not wait).

        Args:
            drain: True: serve what is queued; False: fail it with BatcherClosed. Batches that run are
                finished.
            timeout: Seconds to wait for batches; then all that is left, running or not, fails with
                BatcherClosed.
        """
        if self._home.left:
            return  # nothing of it lives here, and the parent's locks may be held for ever
        free = self._dispatcher.close(drain=drain, timeout_s=_seconds("timeout", timeout))
        if self._own_pool is not None:
            self._own_pool.shutdown(wait=free)

    async def aclose(self, drain: bool = True, timeout: float | None = None) -> None:
        """`shutdown` without blocking the event loop."""
        # Not in the loop's own executor: its last free worker may be the one that the batches wait for.
        thread = ThreadPoolExecutor(1, "torchgil-batcher-close")
        closing = thread.submit(self.shutdown, drain, timeout)
        thread.shutdown(wait=False)
        await asyncio.wrap_future(closing)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        try:
            self.shutdown(drain=not _interrupts(exc_type))  # Ctrl-C: finish what runs, no more
        except KeyboardInterrupt:
            self.shutdown(drain=False, timeout=0)
            raise

    async def __aenter__(self) -> Batcher:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose(drain=not _interrupts(exc_type))

    def _withdraw(self, request: Request) -> bool:
        return not self._home.left and self._dispatcher.withdraw(request)

    def _too_large(self, rows: int) -> ValueError:
        return ValueError(
            f"a request of {rows} rows is larger than max_batch_size={self._max_batch_size}; "
            "send it in parts or make the batcher's max_batch_size larger"
        )

    def _run_batch(self, batch: list[Request], key: Any) -> Sequence[Any] | None:
        try:
            joined = self._collation.join([request.payload for request in batch], key)
            return self._collation.share(self._fn(joined), [request.rows for request in batch])
        except BaseException as error:
            if len(batch) == 1 or not self._retry_halves or not isinstance(error, Exception):
                self._dispatcher.settle_failed(batch, error)
                return None
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            results = self._run_batch(part, key)
            if results is not None:
                self._dispatcher.settle([(part, results)])
        return None


def _results(requests: list[ThreadRequest]) -> Iterator[Any]:
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


def _seconds(name: str, value: float | None) -> float | None:
    if value is not None and not value >= 0:  # not (NaN >= 0)
        raise ValueError(f"Batcher: {name} must be a number of seconds, at least 0, or None, got {value}")
    return value
