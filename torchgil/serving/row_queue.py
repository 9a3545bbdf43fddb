"""The queue of a batcher as data: which requests make the next batch, when, and who waits for room. No
thread, no clock, no lock."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

from torchgil.serving.requests import BLOCKED, ENDED, QUEUED, Request

__all__ = ["RowQueue"]


class _Group:
    """Requests that fit together, oldest first."""

    __slots__ = ("requests", "rows")

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        self.rows = 0


class RowQueue:
    """Requests grouped by what can be concatenated, counted in requests and in rows; and those that wait for
    room, which get it first come, first served.

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
        self.blocked: deque[Request] = deque()  # there are some only where the queue is full
        self.requests = 0
        self.rows = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for another request."""
        return self.requests >= self._max_requests

    def push(self, request: Request) -> bool:
        """Append `request`; True where a batch is due now, without waiting for the delay."""
        group = self._groups.get(request.key)
        if group is None:
            group = self._groups[request.key] = _Group()
        request.state = QUEUED
        group.requests.append(request)
        group.rows += request.rows
        self.rows += request.rows
        self.requests += 1
        return group.rows >= self._max_batch_rows or self.requests >= self._max_requests

    def block(self, request: Request) -> None:
        """Let `request` wait for room."""
        request.state = BLOCKED
        if request.loop is None:
            request.room = threading.Event()
        self.blocked.append(request)

    def discard(self, request: Request) -> None:
        """Take one request out, blocked or queued."""
        if request.state == BLOCKED:
            self.blocked.remove(request)
        else:
            group = self._groups[request.key]
            group.requests.remove(request)
            self._took(request.key, group, 1, request.rows)
        request.state = ENDED

    def take(self, now_s: float, *, flush: bool = False) -> tuple[list[Request], list[Request]]:
        """Take the next batch: of the groups that are due, the one with the oldest request.

        Args:
            now_s: The time, on the clock of `Request.submitted_s`.
            flush: True: everything is due.

        Returns:
            Requests of one key in the order they came, and those found late on the way; none of both where no
            group is due.
        """
        flush = flush or self.full
        oldest_due_s = now_s - self._max_delay_s
        found = None
        found_s = math.inf
        for key, group in self._groups.items():
            head_s = group.requests[0].submitted_s
            if head_s < found_s and (flush or group.rows >= self._max_batch_rows or head_s <= oldest_due_s):
                found, found_s = (key, group), head_s
        batch: list[Request] = []
        late: list[Request] = []
        if found is None:
            return batch, late
        key, group = found
        rows = 0
        while group.requests and (not batch or rows + group.requests[0].rows <= self._max_batch_rows):
            request = group.requests.popleft()
            request.state = ENDED  # for who takes it to say otherwise
            if request.expires_s <= now_s:
                late.append(request)
            else:
                rows += request.rows
                batch.append(request)
        self._took(key, group, len(batch) + len(late), rows + sum(request.rows for request in late))
        return batch, late

    def due_s(self) -> float:
        """When the oldest request is due; infinity where the queue is empty."""
        heads_s = (group.requests[0].submitted_s for group in self._groups.values())
        return min(heads_s, default=math.inf) + self._max_delay_s

    def clear(self) -> list[Request]:
        """Take everything out that is queued, and nothing in."""
        requests = [request for group in self._groups.values() for request in group.requests]
        for request in requests:
            request.state = ENDED
        self._groups.clear()
        self.requests = self.rows = 0
        return requests

    def clear_blocked(self) -> list[Request]:
        """Take everything out that waits for room."""
        blocked = list(self.blocked)
        for request in blocked:
            request.state = ENDED
        self.blocked.clear()
        return blocked

    def _took(self, key: Any, group: _Group, requests: int, rows: int) -> None:
        group.rows -= rows
        self.requests -= requests
        self.rows -= rows
        if not group.requests:
            del self._groups[key]
        while self.blocked and not self.full:
            admitted = self.blocked.popleft()
            self.push(admitted)
            if admitted.room is not None:
                admitted.room.set()
