"""A `concurrent.futures.Future` without a lock until somebody waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["LeanFuture", "set_results"]

# Whoever makes a future's condition, and whoever answers a future that has none: so one of them is first.
# Reentrant, for the garbage collector may run a finalizer right there that asks another future.
_making = threading.RLock()


def _renew_lock() -> None:
    global _making
    _making = threading.RLock()  # in a forked child nobody is left to release the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


F = TypeVar("F", bound="LeanFuture")


def set_results(outcomes: Iterable[tuple[F, Any]]) -> list[tuple[F, Any]]:
    """Set the results of futures that nobody has waited for yet.

    Args:
        outcomes: Futures and their results.

    Returns:
        The others: somebody waits, or they have an outcome.
    """
    others = []
    with _making:
        for future, result in outcomes:
            if future._made is None and future._state == "PENDING":
                future._result = result
                future._state = "FINISHED"
            else:
                others.append((future, result))
    return others


class LeanFuture(Future[Any]):
    """A future made to be answered before anyone waits, as most are that a batch answers.

    The standard one makes a condition, a lock, a queue and two lists each time: 2 us to make, set and read,
    and six objects for the garbage collector to walk, which at a thousand requests in flight costs more than
    the model. Here they come into being when somebody waits, adds a callback or asks
    `concurrent.futures.wait`.

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
        if self._made is None:
            condition = threading.Condition()
            with _making:
                if self._made is None:
                    self._waiters = []
                    self._done_callbacks = []
                    self._made = condition
        assert self._made is not None
        return self._made

    def set_result(self, result: Any) -> None:
        """Set the result, once.

        Raises:
            concurrent.futures.InvalidStateError: The future has its outcome.
        """
        if set_results([(self, result)]):
            super().set_result(result)

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
