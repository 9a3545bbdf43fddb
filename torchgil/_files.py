"""Files that are there whole or not at all: a full disk leaves no half of one under its name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

__all__ = ["identity", "whole", "write_json", "write_whole"]

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)


def identity(descriptor: int) -> tuple[int, int] | None:
    """Which file a descriptor is of: one that was closed may be another's by now. None: of none."""
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        return found.st_dev, found.st_ino
    return None


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Gives a file to write bytes to, which takes the place of `path` when the block ends without an error.

    A file that is there keeps its mode and, as far as that is allowed, its owner; a symbolic link stays
    and what it points to is replaced. A pipe or a device is written to as it is, and so is a file in a
    folder that takes no new ones, or one whose place cannot be taken. Errors name `path`.
    """
    try:
        with _opened(os.fsdecode(path)) as file:
            yield file
    except OSError as error:
        # The file that was written to has a name that nobody has heard of, or none.
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def write_whole(path: str | os.PathLike[str], parts: str | Iterable[str]) -> None:
    """Writes text, whole or not at all; an iterable of parts piece by piece."""
    with whole(path) as file:
        for part in [parts] if isinstance(parts, str) else parts:
            file.write(part.encode())


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """Writes plain data as JSON that a reader can look through, whole or not at all."""
    write_whole(path, f"{json.dumps(data, indent=1)}\n")


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    there = None
    with contextlib.suppress(FileNotFoundError):
        there = os.stat(path)
    if stat.S_ISDIR(there.st_mode) if there is not None else path.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if there is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    # What lies in /dev or /proc is another's open file, also where that is a regular one.
    if (there is not None and not stat.S_ISREG(there.st_mode)) or _is_open_elsewhere(path):
        with open(path, "wb") as file:
            yield file
        return
    target = os.path.realpath(path)
    beside = os.path.join(os.path.dirname(target), f".torchgil-{secrets.token_hex(8)}")
    try:
        descriptor = os.open(beside, _FLAGS, 0o666)  # less the umask, as every new file
    except PermissionError:
        if there is None:
            raise
        with open(target, "wb") as file:
            yield file
        return
    try:
        with open(descriptor, "wb") as file:
            if there is not None:
                _make_like(descriptor, there)
            yield file
        try:
            os.replace(beside, target)
        except OSError as error:
            # A mount point, as containers make of a file, or another's in a folder like /tmp.
            if there is None or error.errno not in (errno.EBUSY, errno.EPERM, errno.EACCES):
                raise
            shutil.copyfile(beside, target)
            os.remove(beside)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(beside)
        raise


def _is_open_elsewhere(path: str) -> bool:
    """Whether it is, or leads to, a name in /dev or /proc, such as /dev/stdout."""
    while not path.startswith(("/dev/", "/proc/")):
        if not os.path.islink(path):
            return False
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return True


def _make_like(descriptor: int, there: os.stat_result) -> None:
    # The owner first: a new one takes the bits away that run a file as its owner.
    if hasattr(os, "fchown"):
        for owner in ((there.st_uid, there.st_gid), (-1, there.st_gid)):
            with contextlib.suppress(OSError):
                os.fchown(descriptor, *owner)
                break
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(there.st_mode))
