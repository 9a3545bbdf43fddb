"""Files that are there whole or not at all: a full disk leaves no half of one under its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole", "write_whole"]


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write to, whose file takes the place of `path` when the block ends without an error."""
    target = Path(path).resolve()
    if target.exists() and not target.is_file():  # a pipe or a device, written as it comes
        yield target
        return
    # A folder, and not a file, so that the file gets the permissions that any new one gets.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        written = Path(folder, target.name)
        yield written
        os.replace(written, target)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole(path) as written:
        written.write_text(text)
