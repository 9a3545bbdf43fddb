"""What a recording's events are in a report's file: short lines of text, in pieces.

A piece is base64 of zlib of three columns, one behind the other: of each event the nanoseconds since the one
before (int64), its kind (a byte), and its name (int64), least byte first. Traces of torch's ops take some
two characters an event so, and seven as digits.
"""

from __future__ import annotations

import binascii
import sys
import zlib
from array import array
from collections.abc import Iterator
from itertools import accumulate, chain, islice
from operator import sub
from typing import Any

from torchgil.tracing._recording import Kind, ThreadRecording

__all__ = ["EventColumns", "packed", "packed_events", "unpacked"]

_EVENTS = 1 << 14  # of a piece: what one call into C does with it takes less than a millisecond
_BYTES = 1 << 18  # likewise, of a table of names
_MOST_BYTES = 1 << 20  # no piece of ours has more, whatever a damaged one says
_EVENT_BYTES = 8 + 1 + 8
_KINDS = bytes(Kind)


def packed_events(thread: ThreadRecording) -> Iterator[str]:
    """A thread's events, in pieces."""
    before = 0
    for begin in range(0, len(thread.times_ns), _EVENTS):
        part = slice(begin, begin + _EVENTS)
        times = array("q", thread.times_ns[part])
        deltas = array("q", map(sub, times, chain((before,), times)))
        before = times[-1]
        kinds, names = bytes(thread.kinds[part]), array("q", thread.names[part])
        yield _text(_little(deltas).tobytes() + kinds + _little(names).tobytes())


def packed(data: bytes) -> Iterator[str]:
    """Bytes, in pieces."""
    return (_text(data[begin : begin + _BYTES]) for begin in range(0, len(data), _BYTES))


def unpacked(piece: Any, what: str) -> bytes:
    """The bytes of one piece; `what` is what to call it.

    Raises:
        ValueError: It is none.
    """
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress(binascii.a2b_base64(piece), _MOST_BYTES)
    except (TypeError, ValueError, zlib.error):
        raise ValueError(f"{what} is damaged") from None
    if not decompressor.eof:
        raise ValueError(f"{what} is damaged")
    return data


class EventColumns:
    """The events of one thread, as `ThreadRecording` has them."""

    def __init__(self) -> None:
        self.times_ns, self.kinds, self.names = array("q"), bytearray(), array("q")

    def add(self, piece: Any, what: str) -> None:
        """Those of the next piece.

        Raises:
            ValueError: It is none.
        """
        data = unpacked(piece, what)
        count, rest = divmod(len(data), _EVENT_BYTES)
        kinds = data[8 * count : 9 * count]
        if rest or kinds.translate(None, _KINDS):
            raise ValueError(f"{what} is damaged")
        before = self.times_ns[-1] if self.times_ns else 0
        times = accumulate(_numbers(data[: 8 * count]), initial=before)
        try:
            self.times_ns.extend(islice(times, 1, None))
        except OverflowError:
            raise ValueError(f"{what} is damaged") from None
        self.kinds += kinds
        self.names += _numbers(data[9 * count :])


def _text(data: bytes) -> str:
    return binascii.b2a_base64(zlib.compress(data), newline=False).decode()


def _numbers(data: bytes) -> array[int]:
    return _little(array("q", data))


def _little(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
