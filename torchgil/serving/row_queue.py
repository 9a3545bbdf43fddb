"""The queue of a batcher as data: which requests make the next batch, and when. No thread, no clock, no
lock."""

from __future__ import annotations

from collections import deque
from typing import Any

from torchgil.serving.requests import QUEUED, RUNNING, Request

__all__ = ["RowQueue"]


class _Group:
    """Requests that fit together, oldest first."""

    __slots__ = ("key", "requests", "rows")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.requests: deque[Request] = deque()
        self.rows = 0


class RowQueue:
    """Requests grouped by what can be concatenated, counted in requests and in rows.

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
        self.requests = 0
        self.rows = 0
        self.full = False

    def push(self, request: Request, key: Any) -> bool:
        """Append `request`, which goes with others of an equal `key`.

        Returns:
            True where a batch is due now, without waiting for the delay.
        """
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(key)
        request.state = QUEUED
        request.group = group
        group.requests.append(request)
        group.rows += request.rows
        self.rows += request.rows
        self.requests += 1
        self.full = self.requests >= self._max_requests
        return group.rows >= self._max_batch_rows or self.full

    def discard(self, request: Request) -> None:
        """Take one queued request out."""
        group: _Group = request.group
        group.requests.remove(request)
        self._shrink(group, 1, request.rows)

    def take(self, now_s: float, *, flush: bool = False) -> tuple[list[Request], Any]:
        """Take the next batch: of the groups that are due, the one with the oldest request.

        Args:
            now_s: The time, on the clock of `Request.submitted_s`.
            flush: True: everything is due.

        Returns:
            Requests in the order they came, now RUNNING, and the key they share; no requests where none is
            due.
        """
        flush = flush or self.full
        oldest_due_s = now_s - self._max_delay_s
        group = None
        for candidate in self._groups.values():
            head_s = candidate.requests[0].submitted_s
            if (flush or candidate.rows >= self._max_batch_rows or head_s <= oldest_due_s) and (
                group is None or head_s < group.requests[0].submitted_s
            ):
                group = candidate
        if group is None:
            return [], None
        batch: list[Request] = []
        rows = 0
        requests = group.requests
        while requests:
            request = requests[0]
            if batch and rows + request.rows > self._max_batch_rows:
                break
            rows += request.rows
            request.state = RUNNING
            batch.append(request)
            requests.popleft()
        self._shrink(group, len(batch), rows)
        return batch, group.key

    def due_s(self) -> float:
        """When the oldest request becomes due; infinity where the queue is empty."""
        heads = (group.requests[0].submitted_s for group in self._groups.values())
        return min(heads, default=float("inf")) + self._max_delay_s

    def clear(self) -> list[Request]:
        """Take everything out."""
        requests = [request for group in self._groups.values() for request in group.requests]
        self._groups.clear()
        self.requests = self.rows = 0
        self.full = False
        return requests

    def _shrink(self, group: _Group, requests: int, rows: int) -> None:
        group.rows -= rows
        self.requests -= requests
        self.full = False
        self.rows -= rows
        if not group.requests:
            del self._groups[group.key]
