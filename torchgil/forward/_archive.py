"""Whether an archive, of a package or of a saved program, is as it was written."""

from __future__ import annotations

import os
import zipfile
from typing import IO

__all__ = ["damage"]

_HEADER = b"PK\x01\x02"  # each file's in the archive's directory begins so


def damage(archive: str | os.PathLike[str] | IO[bytes]) -> str:
    """What is wrong with an archive, by its headers and checksums; "" where nothing is.

    Native code with a bit flipped would crash, or compute something else; weights would be others.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for item in opened.infolist():
                if _HEADER in item.comment:  # a length that is wrong takes in what follows
                    return f"the header of {item.filename} hides other files"
            name = opened.testzip()
    except Exception as error:  # a damaged header may say anything
        return f"it cannot be read ({error})"
    return "" if name is None else f"the checksum of {name} differs"
