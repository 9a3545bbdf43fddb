"""What runs native threads: started and stopped by anyone, not there after the end or a fork."""

from __future__ import annotations

import atexit
import os
import sys
import sysconfig
import threading
import warnings
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from torchgil._copies import NotCopied
from torchgil._gil_half import C

__all__ = ["Background", "changing"]


class Session(Protocol):
    def listen(self) -> None:
        """Has itself told of threads that begin and end, until it is stopped."""

    def stop(self) -> None:
        """Ends the native threads, and waits until they are gone. Twice does no harm."""


S = TypeVar("S", bound=Session)
B = TypeVar("B", bound="Background[Any]")


class Background(NotCopied, Generic[S]):
    """Something that watches the GIL from native threads while it runs."""

    _session: S | None = None
    _last: S | None = None  # the session of the last start, running or not

    def _begin(self) -> S:
        """Starts the threads, or raises and leaves none. Called with the lock of all of these held."""
        raise NotImplementedError

    def _ended(self, session: S) -> None:
        """What is still to do once the native threads are gone."""

    @property
    def running(self) -> bool:
        """Whether it is watching."""
        return self._session is not None

    def start(self) -> None:
        """Begins to watch.

        On a Python without a GIL, or one whose GIL cannot be read, it warns and watches nothing. In a daemon
        thread it does not return once the interpreter is at its exit: such a thread is cut off there anyway.

        Raises:
            RuntimeError: It is watching already, or the interpreter is at its exit.
            ValueError: A setting of the interpreter does not fit what it was made with.
        """
        name = type(self).__name__
        if not C.gil_holder_known():
            warnings.warn(f"{name}: {_why_not()}; nothing is watched", RuntimeWarning, stacklevel=2)
            return
        begun = None
        try:
            with changing():
                if self._session is not None:
                    raise RuntimeError(f"this {name} is running already; stop() it first, or make another")
                if not _exiting:
                    try:
                        _running.add(self)  # before, so that a fork in the middle of it leaves the child none
                        begun = self._session = self._last = self._begin()
                        begun.listen()
                        return
                    except BaseException:
                        _running.discard(self)
                        raise
        except BaseException as error:
            if begun is not None:  # Ctrl-C, just after
                self.stop()
            # What Python 3.12 and later say to whoever starts a thread, before atexit's functions are called.
            if not isinstance(error, RuntimeError) or "interpreter shutdown" not in str(error):
                raise
        if threading.current_thread().daemon:
            threading.Event().wait()
        raise RuntimeError(f"a {name} cannot be started at interpreter exit")

    def stop(self) -> None:
        """Ends watching; its native threads are gone when it returns. Twice does no harm."""
        try:
            session = self._stop()
        except BaseException:  # Ctrl-C amid it
            self._stop()
            raise
        if session is not None:
            self._ended(session)

    def _stop(self) -> S | None:
        session = self._session
        if session is not None:
            session.stop()
            # Not before: while another thread stops it, whoever ends the interpreter waits for that here.
            with changing():
                if self._session is session:
                    self._session = None
                    _running.discard(self)
        return session

    def __enter__(self: B) -> B:
        before = self._session
        try:
            self.start()
            return self
        except BaseException:
            if self._session is not before:  # Ctrl-C, just after
                self.stop()
            raise

    __exit__ = C.leave_block


def _why_not() -> str:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "this Python runs without a GIL, so nothing can hold it"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "who holds the GIL cannot be read in a free-threaded build that has turned it on"
    version = ".".join(map(str, sys.version_info[:2]))
    return f"who holds the GIL cannot be read on Python {version} (3.10 to 3.14 are known)"


# Reentrant: a signal handler or a finalizer may start or stop one while its own thread does.
_changing = threading.RLock()
_running: set[Background[Any]] = set()  # keeps them alive while they watch
_exiting = False


def changing() -> AbstractContextManager[bool]:
    """Held for moments, by whoever starts, stops or reads one of these."""
    return _changing


def _stop_all() -> None:
    """Before the interpreter ends: a thread that asks for the GIL after that never gets it."""
    global _exiting
    with changing():  # whoever is starting one has started it then
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
