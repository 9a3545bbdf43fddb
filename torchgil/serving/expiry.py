"""Times out the requests of threads on time, also while every batch worker is busy."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torchgil.serving.requests import SETTLED, ThreadRequest

__all__ = ["ExpiryClock"]


class ExpiryClock:
    """Calls `expire(request)` for each request whose time is up, unless it was settled before.

    Its thread is an executor's, so it is no daemon; it sleeps until the next time-out and waits only while
    there is a request to watch, so that a long time-out of a request long answered never keeps the
    interpreter from exiting.

    Args:
        expire: Called without a lock, in the clock's thread.
    """

    def __init__(self, expire: Callable[[ThreadRequest], None]) -> None:
        self._expire = expire
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, ThreadRequest]] = []
        self._order = itertools.count()
        self._watched = 0
        self._executor: ThreadPoolExecutor | None = None
        self._running = False
        self._closed = False

    def watch(self, request: ThreadRequest, expires_s: float) -> None:
        """Watch `request` until `forget`; `expires_s` is on the monotonic clock.

        Raises:
            RuntimeError: After `close`, or at interpreter exit.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is shut down")
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, "torchgil-batcher-clock")
            if not self._running:
                self._executor.submit(self._run)
                self._running = True
            if (
                len(self._heap) > 2 * self._watched + 64
            ):  # answered ones stay in the heap; keep them the minority
                self._heap = [entry for entry in self._heap if entry[2].state < SETTLED]
                heapq.heapify(self._heap)
            heapq.heappush(self._heap, (expires_s, next(self._order), request))
            self._watched += 1
            if self._heap[0][2] is request:
                self._changed.notify()

    def forget(self, count: int) -> None:
        """`count` of the watched requests have their outcome."""
        with self._changed:
            self._watched -= count
            if not self._watched:
                self._changed.notify()

    def close(self) -> None:
        """End the thread once nothing is watched; nothing may be watched after."""
        with self._changed:
            self._closed = True
            executor = self._executor
        if executor is not None:
            executor.shutdown(wait=False)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._watched and (wait_s := self._next_s() - time.monotonic()) > 0:
                    self._changed.wait(min(wait_s, threading.TIMEOUT_MAX))
                if not self._watched:
                    self._heap.clear()
                    self._running = False
                    return
                request = heapq.heappop(self._heap)[2]
            if request.state < SETTLED:
                self._expire(request)

    def _next_s(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")
