"""Figures of matplotlib's as files, without the GIL held for long."""

from __future__ import annotations

import io
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import IO, Any

from torchgil._files import whole

__all__ = ["save_figure"]

_ROWS = 64  # at a time


def save_figure(figure: Any, path: str | PathLike[str], *, dpi: float) -> None:
    """Writes a figure in the format that the name ends with; PNG where it has no ending."""
    kind = Path(path).suffix[1:].lower() or "png"
    with whole(path) as file:
        if kind == "png":
            figure.savefig(_Png(file, dpi), format="rgba", dpi=dpi)
        else:
            figure.savefig(file, format=kind, dpi=dpi)


class _Png(io.RawIOBase):
    """What matplotlib writes pixels to. Pillow compresses them with the GIL held: 40 ms a megapixel."""

    def __init__(self, file: IO[bytes], dpi: float) -> None:
        self._file = file
        self._per_metre = round(dpi / 0.0254)

    def write(self, pixels: Any) -> int:
        """All of them, a memoryview of shape [height, width, 4]."""
        height, width, _ = pixels.shape
        flat, row = pixels.cast("B"), 4 * width
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))  # 8 bits, RGBA
        self._chunk(b"pHYs", struct.pack(">IIB", self._per_metre, self._per_metre, 1))
        compressor = zlib.compressobj()
        for first in range(0, height, _ROWS):
            rows = range(first, min(first + _ROWS, height))
            # Each row begins with the number of its filter: none.
            strip = b"".join(part for i in rows for part in (b"\0", flat[i * row : (i + 1) * row]))
            if data := compressor.compress(strip):
                self._chunk(b"IDAT", data)
        self._chunk(b"IDAT", compressor.flush())
        self._chunk(b"IEND", b"")
        return len(flat)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data)
        self._file.write(struct.pack(">I", zlib.crc32(kind + data)))
