"""The queue of a batcher as data: which requests make the next batch, when, and who waits for room. No
thread, no clock, no lock."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from torchgil.serving._own_work import Bell
from torchgil.serving._requests import Request

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

    Once the queue is full, nobody is let in until half of it is free, and at least a batch. A producer that
    is faster than the worker would else be woken for each batch, and then take the GIL from each of its ops.

    A caller cancels a request without a word to the queue: that is found when a batch is formed, when room is
    wanted, and by `sweep`.

    Args:
        max_batch_rows: Most rows in a batch.
        max_delay_s: A group is due when its oldest request has waited so long, or when it fills a batch.
        max_requests: Most requests in the queue; from when it is full until there is room again, there is
            nothing left to wait for.
    """

    def __init__(self, max_batch_rows: int, max_delay_s: float, max_requests: int) -> None:
        self._max_batch_rows = max_batch_rows
        self._max_delay_s = max_delay_s
        self._max_requests = max_requests
        self._few_enough = max_requests - min(max_requests, max(max_batch_rows, max_requests // 2))
        self._groups: dict[Any, _Group] = {}
        self._swept = False  # since the last batch
        self.blocked: deque[Request] = deque()  # there are some only while the queue is not empty
        self.requests = 0
        self.rows = 0
        self.cancelled = 0  # by their callers, while they were queued

    def has_room(self) -> bool:
        """Whether another request may come in; what was cancelled makes way once between two batches."""
        if self.requests >= self._max_requests and not (self.blocked or self._swept):
            self.sweep()
        return self.requests < self._max_requests and not self.blocked  # nobody overtakes those

    def push(self, request: Request) -> bool:
        """Append `request`; True where with it a batch became due, without waiting for the delay."""
        known = self._groups.get(request.key)
        group = _Group(request.key) if known is None else known
        request.state = "queued"
        group.rows += request.rows
        self.rows += request.rows
        self.requests += 1
        group.requests.append(request)
        if known is None:
            self._groups[request.key] = group
        return (
            group.rows - request.rows < self._max_batch_rows <= group.rows
            or self.requests >= self._max_requests
        )

    def block(self, request: Request) -> None:
        """Let `request` wait for room."""
        if request.loop is None:
            request.room = Bell()
        request.state = "blocked"
        self.blocked.append(request)

    def take(self, now_s: float, late: list[Request], *, flush: bool = False) -> list[Request]:
        """Take the next batch: of the groups that are due, the one with the oldest request.

        Args:
            now_s: The time, on the clock of `Request.submitted_s`.
            late: Gets those that are found late on the way.
            flush: True: everything is due.

        Returns:
            Requests of one key in the order they came; none where no group is due, or all that were are late.
        """
        flush = flush or self.requests >= self._max_requests or bool(self.blocked)  # nothing else can come
        batch: list[Request] = []
        while not (batch or late) and (group := self._oldest_due(now_s, flush)):
            self._swept = False
            rows = 0
            while group.requests and rows + group.requests[0].rows <= self._max_batch_rows:
                request = group.requests[0]
                on_time = request.expires_s > now_s
                self._out(group, request, batch if on_time else late)
                rows += request.rows * (on_time and request.state == "taken")
            self._let_go(group)
        return batch

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

    def remove(self, request: Request, into: list[Request]) -> None:
        """Take one request out of the queue, into a list where it is not cancelled."""
        group = self._groups[request.key]
        self._out(group, request, into)
        self._let_go(group)

    def admit(self, request: Request) -> bool:
        """Let one that waits for room in before its turn; False where the queue is full."""
        if self.requests >= self._max_requests:
            return False
        self.push(request)
        request.let_in()
        self.blocked.remove(request)
        return True

    def remove_blocked(self, request: Request, into: list[Request]) -> None:
        """Take out one that waits for room."""
        request.state = "ended"
        into.append(request)
        self.blocked.remove(request)

    def sweep(self) -> None:
        """Let go of what was cancelled."""
        self._swept = True
        for request in [request for request in self.blocked if request.future.cancelled()]:
            self.remove_blocked(request, [])
        for group in list(self._groups.values()):
            cancelled = [request for request in group.requests if request.future.cancelled()]
            for request in cancelled:
                self._count_out(group, request, [])
            if cancelled:
                self._keep_queued(group)
                self._let_go(group)

    def clear(self, into: list[Request]) -> None:
        """Take everything out that is queued; `clear_blocked` before it, or what is blocked comes in."""
        for group in list(self._groups.values()):
            while group.requests:
                self._out(group, group.requests[0], into)
            self._let_go(group)

    def clear_blocked(self, into: list[Request]) -> None:
        """Take everything out that waits for room."""
        while self.blocked:
            self.remove_blocked(self.blocked[0], into)

    def mend(self) -> None:
        """After an exception amid a change: what has left the queue is out of it, and all is counted."""
        for group in self._groups.values():
            self._keep_queued(group)
            group.rows = sum([request.rows for request in group.requests])
        self._groups = {key: group for key, group in self._groups.items() if group.requests}
        self.rows = sum([group.rows for group in self._groups.values()])
        self.requests = sum([len(group.requests) for group in self._groups.values()])
        for request in self.blocked:
            if request.state == "queued":
                request.let_in()
        self.blocked = deque([request for request in self.blocked if request.state == "blocked"])
        self._let_in()

    # The order of the steps below is such that after each of them a request is either in the queue, by its
    # state, or in `into`: an exception may come between any two.

    def _count_out(self, group: _Group, request: Request, into: list[Request]) -> None:
        """Take `request` out but for its place in `group`."""
        if request.take():
            into.append(request)
        else:
            self.cancelled += 1
        group.rows -= request.rows
        self.rows -= request.rows
        self.requests -= 1

    def _out(self, group: _Group, request: Request, into: list[Request]) -> None:
        """Take `request` out of `group`, into a list where it is not cancelled."""
        self._count_out(group, request, into)
        group.requests.remove(request)  # mostly the first

    def _keep_queued(self, group: _Group) -> None:
        group.requests = deque([request for request in group.requests if request.state == "queued"])

    def _let_go(self, group: _Group) -> None:
        """Forget `group` where it is empty, and let others in."""
        if not group.requests:
            self._groups.pop(group.key, None)
        self._let_in()

    def _let_in(self) -> None:
        if self.requests > self._few_enough:
            return
        while self.blocked and self.requests < self._max_requests:
            request = self.blocked[0]
            if request.future.cancelled():  # its caller waits no more
                request.state = "ended"
            elif request.state == "blocked":
                self.push(request)
                request.let_in()
            self.blocked.popleft()
