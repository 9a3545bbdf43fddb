"""A thread pool for PyTorch: `ThreadPoolExecutor` with the threads inside ops set right, and numbers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import torch

from torchgil._checks import flag, function, number, text, whole
from torchgil._copies import NotCopied
from torchgil._priority import GilPriority
from torchgil._threads import set_own_intra_op_threads, usable_cores
from torchgil.serving._own_work import amid, handed_over, later, own_work
from torchgil.serving._stats import PoolCounts, PoolStats

__all__ = ["ThreadPool", "check_process"]

P = ParamSpec("P")
T = TypeVar("T")

_thread = threading.local()  # keeps what a worker entered for as long as the worker lives


class ThreadPool(NotCopied, ThreadPoolExecutor):
    """A `concurrent.futures.Executor` whose workers share the machine's cores instead of fighting over them.

    An op of PyTorch uses threads of its own, by default as many as there are cores, in each worker: four
    workers on four cores then run sixteen threads. Here each worker gets `cores // workers` of them, set and
    verified in the worker when it starts; the process's own default stays as it was.

    Works wherever an executor does (`loop.run_in_executor`, `map`, `with`), and with `async with`, and
    `await pool.run(fn, ...)` does what `asyncio.to_thread` does. Workers are never daemon threads: at
    interpreter exit, calls that run or wait are finished first. A `with` block left by Ctrl-C cancels what
    waits and finishes what runs.

    Args:
        workers: Threads; by default the usable cores (affinity and cgroup quota).
        max_workers: The same, by the name that the standard library's executors have for it.
        intra_op_threads: Threads one op may use in a worker; by default `max(1, cores // workers)`.
        inference_mode: True: each worker is under `torch.inference_mode()`.
        pin: True: worker i keeps to `intra_op_threads` cores of its own (Linux).
        gil_priority: True: each worker gets the GIL back at once after an op, beside threads that are busy
            in Python (:func:`torchgil.gil_priority`).
        initializer: Called in each worker after the settings above. Where it raises, the pool is broken, as
            with `ThreadPoolExecutor`.
        initargs: Arguments for `initializer`.
        thread_name_prefix: How the workers' names start.

    Raises:
        ValueError: `workers` or `intra_op_threads` below 1, or `pin=True` where the system cannot pin a
            thread.
        TypeError: An argument is of another kind than it says here, or `workers` and `max_workers` are given.

    Warns:
        RuntimeWarning: Once, here, where workers times intra-op threads exceeds the usable cores.

    Example:
        >>> import torch
        >>> with ThreadPool(1) as pool:
        ...     pool.submit(torch.add, torch.ones(2), 1).result()
        tensor([2., 2.])
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        max_workers: int | None = None,
        intra_op_threads: int | None = None,
        inference_mode: bool = False,
        pin: bool = False,
        gil_priority: bool = False,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        thread_name_prefix: str = "torchgil-worker",
    ) -> None:
        if max_workers is not None:
            if workers is not None:
                raise TypeError("ThreadPool: workers and max_workers are one and the same; give one of them")
            workers = max_workers
        cores = usable_cores()
        self._workers = _at_least_one("workers", cores if workers is None else workers)
        share = max(1, cores // self._workers)
        self._intra_op_threads = _at_least_one(
            "intra_op_threads", share if intra_op_threads is None else intra_op_threads
        )
        if pin and not hasattr(os, "sched_setaffinity"):
            raise ValueError(
                "ThreadPool: pin=True needs os.sched_setaffinity, which only Linux has; leave pin out"
            )
        inference_mode = flag("ThreadPool: inference_mode", inference_mode)
        pin, gil_priority = flag("ThreadPool: pin", pin), flag("ThreadPool: gil_priority", gil_priority)
        text("ThreadPool: thread_name_prefix", thread_name_prefix)
        if initializer is not None:
            function("ThreadPool: initializer", initializer)
        if not isinstance(initargs, tuple | list):
            raise TypeError(f"ThreadPool: initargs must be a tuple of arguments, got {initargs!r}")
        total = self._workers * self._intra_op_threads
        if total > cores:
            warnings.warn(
                f"ThreadPool: {self._workers} workers x {self._intra_op_threads} intra-op threads = {total} "
                f"threads on {cores} usable cores; they will take turns. Use "
                f"ThreadPool({min(self._workers, cores)}, intra_op_threads={share})",
                RuntimeWarning,
                stacklevel=2,
            )
        self._counts = PoolCounts()
        self._pid = os.getpid()
        kept = [torch.inference_mode] * inference_mode + [GilPriority] * gil_priority
        settings = (self._intra_op_threads, kept, sorted(os.sched_getaffinity(0)) if pin else None)
        super().__init__(
            self._workers,
            thread_name_prefix,
            initializer=_start_worker,
            initargs=(self._counts, itertools.count(), *settings, initializer, initargs),
        )

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue `fn(*args, **kwargs)` for a worker.

        Args:
            fn: Any callable; its arguments follow.

        Returns:
            The call's future.

        Raises:
            RuntimeError: After `shutdown`, at interpreter exit, or in a forked child.
            concurrent.futures.BrokenExecutor: After an initializer raised.
        """
        check_process("ThreadPool", self._pid)
        if not amid():
            return own_work(self._submit, fn, args, kwargs)
        if handed_over(self):
            return self._submit(fn, args, kwargs)
        future: Future[T] = Future()  # a signal handler's or a finalizer's, amid a call like this one
        later(self._submit_late, future, fn, args, kwargs)
        return future

    def _submit(self, fn: Callable[..., T], args: Any, kwargs: Any) -> Future[T]:
        counts, ticket = self._counts, object()
        try:
            counts.waiting.add(ticket)
            future = super().submit(counts.call, ticket, time.perf_counter(), fn, args, kwargs)
            future.add_done_callback(functools.partial(counts.settled, ticket))
        except BaseException:
            counts.waiting.discard(ticket)
            raise
        return future

    def _submit_late(self, future: Future[T], fn: Callable[..., T], args: Any, kwargs: Any) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            self.submit(fn, *args, **kwargs).add_done_callback(functools.partial(_pass_on, future))
        except Exception as error:
            future.set_exception(error)

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)` in a worker, with the caller's context variables.

        Cancelling the awaiting task cancels the call if no worker has taken it yet; a call that runs, runs
        on.

        Args:
            fn: Any callable; its arguments follow.

        Returns:
            What `fn` returns.

        Raises:
            RuntimeError: As `submit`; otherwise what `fn` raises.

        Example:
            >>> import asyncio
            >>> with ThreadPool(1) as pool:
            ...     asyncio.run(pool.run(sum, [1, 2]))
            3
        """
        context = contextvars.copy_context()

        def call() -> T:
            try:
                return context.run(fn, *args, **kwargs)
            except StopIteration as stop:  # no future of asyncio takes it, and the task would wait for ever
                raise RuntimeError(f"{fn!r} raised StopIteration") from stop

        return await asyncio.wrap_future(self.submit(call))

    def stats(self, *, gil: bool = False, window: float = 0.1) -> PoolStats:
        """What the pool is doing.

        Args:
            gil: True: trace the process for `window` seconds and add how long the workers waited for the GIL.
                Blocks for that time, and costs the process what `torchgil.trace` costs.
            window: Seconds to trace.

        Returns:
            Counts since the pool was made; see `PoolStats`.

        Raises:
            ValueError: `window` is not from 0 to 86400 seconds.
        RuntimeError: In a forked child, or with `gil=True` inside another trace.

        Example:
            >>> with ThreadPool(1) as pool:
            ...     _ = pool.submit(int).result()
            ...     pool.stats().done
            1
        """
        check_process("ThreadPool", self._pid)
        window = number("ThreadPool.stats: window", window, 0, 86400, wanted="from 0 to 86400 seconds")
        window_s = wait_s = None
        if gil:
            from torchgil.tracing import trace

            with trace() as t:
                time.sleep(window)
            report = t.report()
            window_s = report.wall_s
            wait_s = sum(
                thread.wait_s + thread.preempted_s
                for thread in report.threads
                if thread.ident in self._counts.worker_idents
            )
        stats = self._counts.snapshot(self._workers, self._intra_op_threads)
        return replace(stats, gil_window_s=window_s, gil_wait_s=wait_s)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; finish the queue.

        A signal handler or a finalizer may call it too. Where that comes amid a call of a pool or a batcher,
        it takes effect right after that, and does not wait.

        Args:
            wait: True: return when the workers have ended.
            cancel_futures: True: cancel the calls that no worker has taken yet.
        """
        # A forked child has no workers to wait for, and the parent's locks may be held there for ever.
        if os.getpid() != self._pid:
            return
        shut_down = functools.partial(super().shutdown, wait=False, cancel_futures=cancel_futures)
        if amid():
            later(shut_down)
            return
        own_work(shut_down)
        if wait:
            for thread in list(self._threads):
                thread.join()

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        interrupted = exc_type is not None and issubclass(exc_type, KeyboardInterrupt)
        try:
            self.shutdown(wait=True, cancel_futures=interrupted)
        except KeyboardInterrupt:
            self.shutdown(wait=False, cancel_futures=True)
            raise

    async def __aenter__(self) -> ThreadPool:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        """As `__exit__`, without blocking the event loop. Cancelled, it leaves the workers to end alone."""
        interrupted = exc_type is not None and issubclass(exc_type, KeyboardInterrupt)
        self.shutdown(wait=False, cancel_futures=interrupted)
        await asyncio.get_running_loop().run_in_executor(None, self.shutdown)


def _pass_on(future: Future[Any], call: Future[Any]) -> None:
    """Give `future` the outcome of `call`."""
    if call.cancelled():
        future.set_exception(CancelledError())
    elif (error := call.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(call.result())


def _start_worker(
    counts: PoolCounts,
    indices: Iterator[int],
    intra_op_threads: int,
    kept: Sequence[Callable[[], AbstractContextManager[Any]]],
    cores: Sequence[int] | None,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> None:
    """What each worker does before its first call."""
    try:
        if cores:
            # Before the first op: the op's own threads inherit the mask of the thread that makes them.
            first = next(indices) * intra_op_threads
            width = min(intra_op_threads, len(cores))
            os.sched_setaffinity(0, {cores[(first + i) % len(cores)] for i in range(width)})
        set_own_intra_op_threads(intra_op_threads)
        _thread.kept = [make() for make in kept]
        for context in _thread.kept:
            context.__enter__()
        if initializer is not None:
            initializer(*initargs)
    except BaseException:
        counts.broken = True
        raise
    counts.worker_idents.add(threading.get_ident())


def check_process(what: str, pid: int) -> None:
    """Raise RuntimeError in a forked child of the process `pid`, where the `what` was made."""
    if os.getpid() != pid:
        raise RuntimeError(
            f"this {what} was made before os.fork() and its threads stayed in the parent process; make a new "
            f"{what} in the child"
        )


def _at_least_one(name: str, value: int) -> int:
    # 4096 is far over any machine's cores: more is a mistake.
    wanted = "at least 1 and at most 4096, an integer"
    return whole(f"ThreadPool: {name}", value, 1, 4096, wanted=wanted)
