"""Tells whoever wants to know that a thread begins and that it ends, in the thread itself.

That is the last moment at which its name can be known: what looks at threads without the GIL knows no names,
and the interpreter uses the memory of a thread's state for the next thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

__all__ = ["Listener", "leave", "listen"]


class Listener(Protocol):
    """What is told; each call is made in the thread that it speaks of."""

    def thread_begins(self, name: str) -> bool:
        """False: not to be told of its end."""

    def thread_ends(self, name: str) -> None: ...


_listeners: list[Listener] = []
_changing = threading.RLock()  # held for moments; a finalizer amid it may come here as well


def listen(listener: Listener) -> None:
    """Told from now on, of threads that ``threading`` starts."""
    with _changing:
        _listeners.append(listener)
        _install()


def leave(listener: Listener) -> None:
    """Not told any more."""
    with _changing:
        if listener in _listeners:
            _listeners.remove(listener)
        if not _listeners:
            _put_back()


_NAME = "_bootstrap_inner"  # what a new thread calls for all that it does; so in 3.10 to 3.14
_wrapped: tuple[Callable[..., None], Callable[..., None]] | None = None  # ours, and what stood there before


def _install() -> None:
    global _wrapped
    original = getattr(threading.Thread, _NAME, None)
    if original is None or (_wrapped and original is _wrapped[0]):
        return

    def bootstrap(thread: Any) -> None:
        # Where this is called twice, since somebody wrapped it meanwhile, the second time a thread is known.
        told: list[Listener] = []
        with suppress(Exception):  # no memory: whoever starts this thread waits for it to begin, for ever
            told += [each for each in tuple(_listeners) if each.thread_begins(thread._name)]
        try:
            original(thread)
        finally:
            for each in told:
                with suppress(Exception):
                    each.thread_ends(thread._name)

    _wrapped = bootstrap, original
    setattr(threading.Thread, _NAME, bootstrap)


def _put_back() -> None:
    global _wrapped
    # Somebody who wrapped it after us calls ours, which does no harm.
    if _wrapped and getattr(threading.Thread, _NAME) is _wrapped[0]:
        setattr(threading.Thread, _NAME, _wrapped[1])
    _wrapped = None


def _forget() -> None:
    """In the child of a fork: who listened is the parent's."""
    global _changing
    _changing = threading.RLock()
    _listeners.clear()
    _put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
