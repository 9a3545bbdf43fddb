"""Words and progress for whoever reads a command's output. A stream that nobody reads costs nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Progress", "for_whoever_reads", "is_terminal", "slow"]


@contextlib.contextmanager
def for_whoever_reads() -> Iterator[None]:
    """For printing to stdout and stderr: that nobody reads it, as behind ``| head``, is no error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # gone, closed, None
        yield
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (ValueError, AttributeError):
            pass
        except OSError:
            # What is in its buffer would fail again when the interpreter ends, with an exit code of its own.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def is_terminal(stream: Any) -> bool:
    """Whether it is one; False where it is closed, or there is none."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


class Progress:
    """One line on stderr, which the next one replaces. Where stderr is no terminal nothing is written.

    Args:
        write: What writes to a terminal in place of stderr; None: to stderr, if that is one.
    """

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        if write is None and is_terminal(sys.stderr):
            write = sys.stderr.write
        self._write = write

    @property
    def shown(self) -> bool:
        """Whether there is a terminal."""
        return self._write is not None

    def show(self, line: str) -> None:
        """Writes the line in place of the last one; "" only removes that."""
        if self._write is not None:
            with for_whoever_reads():
                self._write(f"\r\x1b[K{line}")


@contextlib.contextmanager
def slow(what: str, progress: Progress, *, after_s: float = 2.0) -> Iterator[None]:
    """For a block that may take long: from two seconds on a line says what it is at, and for how long."""
    if not progress.shown:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        if over.wait(after_s):
            return
        began = time.monotonic() - after_s
        while True:
            progress.show(f"{what}, {time.monotonic() - began:.0f} s")
            if over.wait(1.0):
                break
        progress.show("")

    thread = threading.Thread(target=tell, name="torchgil-progress", daemon=True)
    with contextlib.suppress(RuntimeError):  # a script has left no room for one more thread
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
