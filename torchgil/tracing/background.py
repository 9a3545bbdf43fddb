"""What runs native threads: started and stopped by anyone, not there after the end or a fork."""

from __future__ import annotations

import atexit
import os
import sys
import sysconfig
import threading
import warnings
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from torchgil._build import C

__all__ = ["Background", "changing"]


class Session(Protocol):
    def stop(self) -> None: ...


S = TypeVar("S", bound=Session)
B = TypeVar("B", bound="Background[Any]")


class Background(Generic[S]):
    """Something that watches the GIL from native threads while it runs."""

    _session: S | None = None

    def _begin(self) -> S:
        """Starts the threads. Called with the lock of all of these held."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether it is watching."""
        return self._session is not None

    def start(self) -> None:
        """Begins to watch.

        On a Python without a GIL, or one whose GIL cannot be read, it warns and watches nothing.

        Raises:
            RuntimeError: It is watching already, or the interpreter is at its exit.
            ValueError: A setting of the interpreter does not fit what it was made with.
        """
        name = type(self).__name__
        with changing():
            if self._session is not None:
                raise RuntimeError(f"this {name} is running already; stop() it first, or make another")
            if _exiting:
                raise RuntimeError(f"a {name} cannot be started at interpreter exit")
            if not C.gil_holder_known():
                warnings.warn(f"{name}: {_why_not()}; nothing is watched", RuntimeWarning, stacklevel=2)
                return
            _running.add(self)  # before, so that a fork in the middle of it leaves the child none
            try:
                self._session = self._begin()
            except BaseException:
                _running.discard(self)
                raise

    def stop(self) -> None:
        """Ends watching; its native threads are gone when it returns. Twice does no harm."""
        with changing():
            session, self._session = self._session, None
            _running.discard(self)
        if session is not None:
            session.stop()

    def __enter__(self: B) -> B:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _why_not() -> str:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "this Python runs without a GIL, so nothing can hold it"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "who holds the GIL cannot be read in a free-threaded build that has turned it on"
    version = ".".join(map(str, sys.version_info[:2]))
    return f"who holds the GIL cannot be read on Python {version} (3.10 to 3.14 are known)"


# Reentrant: a finalizer or a signal handler may stop a watchdog while its own thread is in here.
_changing = threading.RLock()
_running: set[Background[Any]] = set()  # keeps them alive while they watch
_exiting = False


def changing() -> AbstractContextManager[bool]:
    """Held for moments, by whoever starts, stops or reads one of these."""
    return _changing


def _stop_all() -> None:
    """Before the interpreter ends: a thread that asks for the GIL after that never gets it."""
    global _exiting
    _exiting = True
    for each in list(_running):
        each.stop()


def _forget_all() -> None:
    """In the child of a fork: the threads are the parent's, and so is who had the lock."""
    global _changing
    _changing = threading.RLock()
    for each in list(_running):
        each._session = None
    _running.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
