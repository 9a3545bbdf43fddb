"""JSON written and read in pieces: one call for all of a large file would hold the GIL for that long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import count
from typing import Any, TextIO

__all__ = ["JsonReader", "dumped"]

_WINDOW = 1 << 17  # characters: what one call decodes takes a millisecond or two. No number has so many


def dumped(value: Any, *, line: str = "\n") -> Iterator[str]:
    """As ``json.dumps(value, indent=1)``; what can be iterated is an array, and a dataclass an object."""
    if value is None or isinstance(value, str | int | float):
        yield json.dumps(value)
        return
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        brackets, members = "{}", ((f"{json.dumps(key)}: ", each) for key, each in value.items())
    else:
        brackets, members = "[]", (("", each) for each in value)
    opening = brackets[0]
    for name, each in members:
        yield f"{opening}{line} {name}"
        yield from dumped(each, line=f"{line} ")
        opening = ","
    yield brackets if opening != "," else line + brackets[1]


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


class JsonReader:
    """Reads a JSON text from its start to its end, whoever wrote it and however it is laid out.

    A value that is short is decoded in one call; a long object or array is walked through.

    Raises:
        ValueError: The text is no JSON, and where.
        RecursionError: It is nested too deeply.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""  # a part of the file
        self._at = 0  # in that part
        self._before = 0  # characters of the file before it
        self._all = False  # nothing follows it

    def peek(self) -> str:
        """The character that the next value begins with."""
        found = self._skip_space()
        if not found:
            raise self._error("", self._at)
        return found

    def value(self, *, keep: bool = True) -> Any:
        """The next value; None instead of a long one that is not to be kept."""
        first = self.peek()
        size = _WINDOW
        while True:
            self._fill(size)
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if first in "{[" and not self._all:
                    return self._walked(first, keep)
                if first != '"' or self._all:
                    raise self._error(error.msg, error.pos) from None
            else:
                if end < len(self._text) or self._all:
                    self._at = end
                    return value
            size *= 2

    def members(self) -> Iterator[str]:
        """Each key of the next value, an object. Its value is to be read before the next key."""
        for _ in self._separated("{", "}"):
            if self.peek() != '"':
                raise self._error("Expecting a key in double quotes", self._at)
            key = self.value()
            self._take(":")
            yield key

    def elements(self) -> Iterator[int]:
        """The number of each element of the next value, an array. It is to be read before the next one."""
        return self._separated("[", "]")

    def end(self) -> None:
        """Nothing follows."""
        if self._skip_space():
            raise self._error("Extra data", self._at)

    def _walked(self, first: str, keep: bool) -> Any:
        if not keep:
            for _ in self.members() if first == "{" else self.elements():
                self.value(keep=False)
            return None
        if first == "{":
            return {key: self.value() for key in self.members()}
        return [self.value() for _ in self.elements()]

    def _separated(self, opening: str, closing: str) -> Iterator[int]:
        self._take(opening)
        if self.peek() == closing:
            self._take(closing)
            return
        for number in count():
            yield number
            if self._take("," + closing) == closing:
                return

    def _take(self, wanted: str) -> str:
        found = self.peek()
        if found not in wanted:
            raise self._error(f"Expecting {' or '.join(map(repr, wanted))}", self._at)
        self._at += 1
        return found

    def _skip_space(self) -> str:
        """The next character that is no space; "" where there is none."""
        while True:
            self._fill(1)
            if self._at == len(self._text):
                return ""
            if (found := self._text[self._at]) not in " \t\n\r":
                return found
            self._at += 1

    def _fill(self, size: int) -> None:
        """Has so many characters here from the place on, or all that there are."""
        while not self._all and len(self._text) - self._at < size:
            try:
                more = self._file.read(max(size, _WINDOW))
            except UnicodeDecodeError:
                raise ValueError("it is no text in UTF-8") from None
            self._all = not more
            self._before += self._at
            self._text = self._text[self._at :] + more
            self._at = 0

    def _error(self, what: str, at: int) -> ValueError:
        if self._all and (at >= len(self._text.rstrip()) or what.startswith("Unterminated")):
            what = "It ends in the middle" if self._text or self._before else "It is empty"
        return ValueError(f"{what[:1].lower()}{what[1:]}, at character {self._before + at}")
