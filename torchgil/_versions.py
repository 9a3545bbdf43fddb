"""Which torch, Python and compiler torchgil is for, and its only place.

setup.py runs this file by its path, before the package can be imported: it imports nothing of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["NEWEST_TORCH", "OLDEST_TORCH", "compiler_objection", "objection", "series", "untried"]

OLDEST_TORCH = (2, 9)
NEWEST_TORCH = (2, 15)  # that the suite was run with; docs/compatibility.md has each


def series(torch_version: str) -> tuple[int, int]:
    """Major and minor of a torch version; micro releases share what torchgil builds on.

    >>> series("2.13.0+cpu"), series("2.16.0a0+git1234567")
    ((2, 13), (2, 16))
    """
    found = re.match(r"(\d+)\.(\d+)", torch_version)
    if found is None:
        raise ValueError(f"not a version of torch: {torch_version!r}")
    return int(found[1]), int(found[2])


def objection(torch_version: str) -> str | None:
    """Why torchgil does not run with that torch, and what to do; None where it does.

    >>> objection("2.8.0")
    'torchgil needs torch 2.9 or later, and this is 2.8.0; install a newer one: pip install "torch>=2.9"'
    >>> objection("2.9.1")
    """
    if series(torch_version) >= OLDEST_TORCH:
        return None
    oldest = _text(OLDEST_TORCH)
    return (
        f"torchgil needs torch {oldest} or later, and this is {torch_version}; "
        f'install a newer one: pip install "torch>={oldest}"'
    )


def untried(torch_version: str) -> str | None:
    """What to say of a torch newer than those tried; None where it was tried.

    >>> untried("2.16.0")
    'torchgil was tried with torch 2.9 to 2.15, not with 2.16.0: it may work, and its tests would tell'
    >>> untried("2.15.2")
    """
    if series(torch_version) <= NEWEST_TORCH:
        return None
    return (
        f"torchgil was tried with torch {_text(OLDEST_TORCH)} to {_text(NEWEST_TORCH)}, not with "
        f"{torch_version}: it may work, and its tests would tell"
    )


def compiler_objection(extension: Path) -> str | None:
    """Why an extension that a compiler made does not run in torch's process; None where it does.

    Two C++ libraries in one process, torch's and its own, crash at the first number in a message.
    """
    if sys.platform != "linux" or b"libstdc++.so" in extension.read_bytes():
        return None
    return (
        "the C++ compiler links its own libstdc++ into extensions, and torch has another: name one that "
        "links the system's, such as CXX=/usr/bin/g++"
    )


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
