"""Whether an archive, of a package or of a saved program, is as it was written."""

from __future__ import annotations

import os
import zipfile
from typing import IO

__all__ = ["damage"]


def damage(archive: str | os.PathLike[str] | IO[bytes]) -> str:
    """What is wrong with an archive, by its headers and checksums; "" where nothing is.

    Native code with a bit flipped would crash, or compute something else; weights would be others.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            name = opened.testzip()
    except Exception as error:  # a damaged header may say anything
        return f"it cannot be read ({error})"
    return "" if name is None else f"the checksum of {name} differs"
