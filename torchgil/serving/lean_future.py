"""A `concurrent.futures.Future` without a lock until somebody waits for it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

__all__ = ["LeanFuture"]

_making = threading.Lock()


class LeanFuture(Future[Any]):
    """A future made to be answered before anyone waits, as most are that a batch answers.

    The standard one makes a condition, a lock, a queue and two lists each time: 2 us to make, set and read,
        and six
    objects for the garbage collector to walk, which at a thousand requests in flight costs more than the
    model. Here they come into being when somebody waits, adds a callback or asks `concurrent.futures.wait`.
    All of these take `_condition` before they look at `_state`, and `set_result` looks for `_condition` after
    it has set `_state`: so either they see the result, or it sees them.

    Example:
        >>> future = LeanFuture()
        >>> future.set_result(1)
        >>> future.result()
        1
    """

    _state = "PENDING"  # the names are those of `concurrent.futures`, whose functions read them
    _result: Any = None
    _exception: BaseException | None = None
    _waiters: Any = ()
    _done_callbacks: Any = ()
    _made: threading.Condition | None = None

    def __init__(self) -> None:
        pass

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made
        if made is None:
            with _making:
                made = self._made
                if made is None:
                    self._waiters = []
                    self._done_callbacks = []
                    self._made = made = threading.Condition()
        return made

    def set_result(self, result: Any) -> None:
        """Set the result, once.

        Raises:
            concurrent.futures.InvalidStateError: The future has its outcome.
        """
        if self._made is not None or self._state != "PENDING":
            super().set_result(result)
            return
        self._result = result
        self._state = "FINISHED"
        if self._made is not None:  # somebody came between
            with self._made:
                for waiter in self._waiters:
                    waiter.add_result(self)
                self._made.notify_all()
            self._invoke_callbacks()

    def result(self, timeout: float | None = None) -> Any:
        """The result, waited for if need be.

        Args:
            timeout: Seconds to wait; None: any time.

        Raises:
            TimeoutError: No outcome in that time.
            concurrent.futures.CancelledError: The future was cancelled; otherwise the exception that was set.
        """
        if self._state == "FINISHED" and self._exception is None:
            return self._result
        return super().result(timeout)
