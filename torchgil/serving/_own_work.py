"""The wing's own work, and what signal handlers and finalizers ask for in the middle of it.

Python runs a signal handler, and a finalizer of garbage, between any two steps of a thread: also while that
thread has a lock of ours, or one of an executor's. If it then called a batcher or a pool it would find half a
change, or wait for itself. So a thread does what needs a lock as `own_work`. A call that finds its thread in
own work leaves a note, and returns; the note is worked off as soon as that own work is over.

An exception may come at any step as well, where the handler raises one: KeyboardInterrupt. Notes are worked
off all the same, and a note that was interrupted is worked off again: each can bear it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["Bell", "amid", "aside", "change", "hand_over", "handed_over", "later", "own_work"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound="_Recovers")


class _OwnWork:
    """A thread's own work: what is to be done once it is over."""

    __slots__ = ("hands_to", "notes")

    def __init__(self) -> None:
        self.notes: deque[Callable[[], object]] = deque()
        self.hands_to: Executor | None = None


_of_threads: dict[int, _OwnWork] = {}  # by their idents


def amid() -> bool:
    """Whether the calling thread is in own work: it must neither wait nor take a lock of the wing's."""
    return threading.get_ident() in _of_threads


def later(fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """Call `fn` once the calling thread's own work is over, which it has to be in."""
    _of_threads[threading.get_ident()].notes.append(functools.partial(fn, *args, **kwargs))


def own_work(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `fn` as own work of the calling thread, and then the notes that were left meanwhile."""
    ident, mine = threading.get_ident(), _OwnWork()
    if ident in _of_threads:
        return fn(*args, **kwargs)
    try:
        try:
            _of_threads[ident] = mine
            return fn(*args, **kwargs)
        finally:
            _of_threads.pop(ident, None)
    finally:
        try:
            _work_off(mine.notes)
        except BaseException:  # Ctrl-C amid one of them
            _work_off(mine.notes)
            raise


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """For what is not own work of the calling thread, though it comes amid some: it may wait, and take locks.

    An executor may run a turn in the very thread that hands it over. The function that is batched there, and
    the done-callbacks of its requests, would wait for ever for what a pool or a batcher puts off.
    """
    ident = threading.get_ident()
    mine = _of_threads.pop(ident, None)
    try:
        yield
    finally:
        if mine is not None:
            _of_threads[ident] = mine


def _forget_the_parents_threads() -> None:
    # A thread of the child may get the number of one that the fork left behind amid its own work, and would
    # put off for ever what it does. The one that forks may itself be in own work, by a signal handler.
    mine = _of_threads.get(threading.get_ident())
    _of_threads.clear()
    if mine is not None:
        _of_threads[threading.get_ident()] = mine


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents_threads)


def _work_off(notes: deque[Callable[[], object]]) -> None:
    while notes:
        notes[0]()
        notes.popleft()


class _Recovers(Protocol):
    def recover(self) -> None:
        """Mend what an exception left half done."""


def change(*refusals: type[Exception]) -> Callable[[Callable[Concatenate[R, P], T]], Callable[..., T]]:
    """A decorator of methods that change what an object has: own work, or, amid own work, put off.

    An exception that comes from nowhere, as Ctrl-C does, leaves no half of a change: the object's `recover`
    is called. `refusals` are those that a method raises before it changes anything.
    """

    def decorate(method: Callable[Concatenate[R, P], T]) -> Callable[..., T]:
        def whole(self: R, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return method(self, *args, **kwargs)
            except refusals:
                raise
            except BaseException:
                self.recover()
                raise

        @functools.wraps(method)
        def put_off_or_do(self: R, *args: P.args, **kwargs: P.kwargs) -> Any:
            if not amid():
                return own_work(whole, self, *args, **kwargs)
            return later(put_off_or_do, self, *args, **kwargs)

        return put_off_or_do

    return decorate


def hand_over(
    executor: Executor, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
) -> Future[Any]:
    """Submit a call to an executor within own work; a pool does not put this one off."""
    mine = _of_threads[threading.get_ident()]
    try:
        mine.hands_to = executor
        return executor.submit(fn, *args, **kwargs)
    finally:
        mine.hands_to = None


def handed_over(executor: Executor) -> bool:
    """Whether this call of the executor's `submit` comes from `hand_over`: asked once, by a pool."""
    mine = _of_threads[threading.get_ident()]
    if mine.hands_to is not executor:
        return False
    mine.hands_to = None
    return True


class Bell:
    """One thread waits, anybody rings, once or more often, before or meanwhile.

    A single lock of the interpreter's, for `threading.Event` has Python code under its own, where a signal
    handler that rings would wait for the thread that it interrupted.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Let the thread go on that waits, or will wait next."""
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._lock.release()

    def silence(self) -> None:
        """Forget that it has rung."""
        self._lock.acquire(blocking=False)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the bell; False where it has not rung after so many seconds."""
        limit = -1 if seconds is None else min(max(seconds, 0), threading.TIMEOUT_MAX)
        return self._lock.acquire(timeout=limit)
