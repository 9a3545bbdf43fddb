"""The stderr that a command writes to after a script has had the process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator

from torchgil._files import identity

__all__ = ["Stderr"]

_HIGH = 100  # a descriptor that is not the next one that a script would get
_PATIENCE_S = 10.0  # with a reader of a non-blocking pipe


class Stderr:
    """The stderr of now, for words that follow when a script has had the process.

    A script may close or redirect its streams, put objects in their place, or close every descriptor. So
    this has a descriptor of its own. A fork's child closes it, and it is written to only while it still
    refers to the same file.
    """

    def __init__(self) -> None:
        stream = sys.stderr
        self._descriptor = -1
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._descriptor = _duplicate(stream.fileno())
            self._is = identity(self._descriptor)
        # A stream without a descriptor, as where a test captures what is written.
        self._stream = stream if self._descriptor < 0 else None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._close)

    def print(self, text: str) -> None:
        """Writes a line; where that fails, nothing else does."""
        self.write(f"{text}\n")

    def write(self, text: str) -> None:
        """Writes text as it is; where that fails, nothing else does."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                print(text, end="", file=self._stream, flush=True)
            elif self._is_ours():
                data = memoryview(text.encode(self._encoding, "backslashreplace"))
                with _no_sigpipe():
                    while data:
                        data = data[self._write(data) :]

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks on. Not where a test captures what is written."""
        return self._is_ours() and os.isatty(self._descriptor)

    @property
    def descriptor(self) -> int | None:
        """For what writes without Python; None where it is no file."""
        return None if self._descriptor < 0 else self._descriptor

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # a script has made the pipe non-blocking, for every process that has it
            if not select.select([], [self._descriptor], [], _PATIENCE_S)[1]:
                raise
            return 0

    def _is_ours(self) -> bool:
        return self._descriptor >= 0 and identity(self._descriptor) == self._is

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                os.close(self._descriptor)
        self._descriptor = -1


def _duplicate(descriptor: int) -> int:
    try:
        import fcntl

        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except (ImportError, OSError):  # not POSIX, or so many are not allowed
        return os.dup(descriptor)


@contextlib.contextmanager
def _no_sigpipe() -> Iterator[None]:
    """Where a script has set SIGPIPE to its default, a reader that is gone would end the process."""
    if not hasattr(signal, "pthread_sigmask") or not hasattr(signal, "sigtimedwait"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before:
            signal.sigtimedwait({signal.SIGPIPE}, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPIPE})
