"""Words and progress for whoever reads a command's output. A stream that nobody reads costs nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["Progress", "for_whoever_reads", "is_terminal"]


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
    """One line on stderr, which the next one replaces. Where stderr is no terminal nothing is written."""

    def __init__(self) -> None:
        self._shown = is_terminal(sys.stderr)

    def show(self, line: str) -> None:
        """Writes the line in place of the last one; "" only removes that."""
        if self._shown:
            with for_whoever_reads():
                sys.stderr.write(f"\r\x1b[K{line}")
