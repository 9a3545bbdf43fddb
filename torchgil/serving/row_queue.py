"""The queue of a batcher as data: which requests make the next batch, when, and who waits for room. No
thread, no clock, no lock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from torchgil.serving.requests import Request

__all__ = ["RowQueue"]


class _Group:
    """Requests that fit together, oldest first."""

    __slots__ = ("key", "requests", "rows")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.requests: deque[Request] = deque()
        self.rows = 0


class RowQueue:
    """Requests grouped by what can be concatenated, counted in requests and in rows; and those that wait for
    room, which get it first come, first served.

    A caller cancels a request without a word to the queue: that is found when a batch is formed, when room is
    wanted, and by `sweep`.

    Args:
        max_batch_rows: Most rows in a batch.
        max_delay_s: A group is due when its oldest request has waited so long, or when it fills a batch.
        max_requests: Most requests in the queue; when it is full there is nothing left to wait for.
    """

    def __init__(self, max_batch_rows: int, max_delay_s: float, max_requests: int) -> None:
        self._max_batch_rows = max_batch_rows
        self._max_delay_s = max_delay_s
        self._max_requests = max_requests
        self._groups: dict[Any, _Group] = {}
        self._swept = False  # since the last batch
        self.blocked: deque[Request] = deque()  # there are some only where the queue is full
        self.requests = 0
        self.rows = 0
        self.cancelled = 0  # by their callers, while they were queued

    def has_room(self) -> bool:
        """Whether another request may come in; what was cancelled makes way once between two batches."""
        if self.requests >= self._max_requests and not (self.blocked or self._swept):
            self.sweep()
        return self.requests < self._max_requests

    def push(self, request: Request) -> bool:
        """Append `request`; True where with it a batch became due, without waiting for the delay."""
        group = self._groups.get(request.key)
        if group is None:
            group = self._groups[request.key] = _Group(request.key)
        request.state = "queued"
        group.requests.append(request)
        group.rows += request.rows
        self.rows += request.rows
        self.requests += 1
        return (
            group.rows - request.rows < self._max_batch_rows <= group.rows
            or self.requests >= self._max_requests
        )

    def block(self, request: Request) -> None:
        """Let `request` wait for room."""
        request.state = "blocked"
        if request.loop is None:
            request.room = Future()
        self.blocked.append(request)

    def take(self, now_s: float, *, flush: bool = False) -> tuple[list[Request], list[Request]]:
        """Take the next batch: of the groups that are due, the one with the oldest request.

        Args:
            now_s: The time, on the clock of `Request.submitted_s`.
            flush: True: everything is due.

        Returns:
            Requests of one key in the order they came, and those found late on the way; none of both where no
            group is due.
        """
        flush = flush or self.requests >= self._max_requests
        while group := self._oldest_due(now_s, flush):
            self._swept = False
            popped, rows = [], 0
            while group.requests and rows + group.requests[0].rows <= self._max_batch_rows:
                request = group.requests.popleft()
                popped.append(request)
                if request.expires_s > now_s:
                    rows += request.rows
            taken = self._took(group, popped)
            if taken:  # not all of them cancelled
                late = [request for request in taken if request.expires_s <= now_s]
                return [request for request in taken if request.expires_s > now_s] if late else taken, late
        return [], []

    def _oldest_due(self, now_s: float, flush: bool) -> _Group | None:
        oldest_due_s = now_s - self._max_delay_s
        found, found_s = None, math.inf
        for group in self._groups.values():
            head_s = group.requests[0].submitted_s
            if head_s < found_s and (flush or group.rows >= self._max_batch_rows or head_s <= oldest_due_s):
                found, found_s = group, head_s
        return found

    def due_s(self) -> float:
        """When the oldest request is due; infinity where the queue is empty."""
        heads_s = (group.requests[0].submitted_s for group in self._groups.values())
        return min(heads_s, default=math.inf) + self._max_delay_s

    def remove(self, request: Request) -> list[Request]:
        """Take one request out, blocked or queued; none where it is cancelled."""
        if request.state == "blocked":
            self.blocked.remove(request)
            request.state = "ended"
            return [request]
        group = self._groups[request.key]
        group.requests.remove(request)
        return self._took(group, [request])

    def sweep(self) -> None:
        """Let go of what was cancelled."""
        self._swept = True
        self.blocked = deque(request for request in self.blocked if not request.future.cancelled())
        for group in list(self._groups.values()):
            cancelled = {request for request in group.requests if request.future.cancelled()}
            group.requests = deque(request for request in group.requests if request not in cancelled)
            self._took(group, cancelled)

    def clear(self) -> list[Request]:
        """Take everything out that is queued; `clear_blocked` before it, or what is blocked comes in."""
        taken = []
        for group in list(self._groups.values()):
            requests, group.requests = group.requests, deque()
            taken += self._took(group, requests)
        return taken

    def clear_blocked(self) -> list[Request]:
        """Take everything out that waits for room."""
        blocked, self.blocked = list(self.blocked), deque()
        for request in blocked:
            request.state = "ended"
        return blocked

    def _took(self, group: _Group, requests: Collection[Request]) -> list[Request]:
        """Count `requests` out, just taken from `group`, and let others in; those that were not cancelled."""
        rows = sum([request.rows for request in requests])
        group.rows -= rows
        self.rows -= rows
        self.requests -= len(requests)
        taken = [request for request in requests if request.take()]
        self.cancelled += len(requests) - len(taken)
        if not group.requests:
            self._groups.pop(group.key, None)
        while self.blocked and self.requests < self._max_requests:
            request = self.blocked.popleft()
            if not request.future.cancelled():  # its caller waits no more
                self.push(request)
                room, request.room = request.room, None
                if room is not None:
                    room.set_result(None)
        return taken
