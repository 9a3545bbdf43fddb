"""JSON in pieces is what the standard library makes of it in one go, written and read."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgil.tracing import _json_pieces as pieces

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner, max_size=9),
    max_leaves=30,
)
WINDOWS = st.sampled_from([48, 60, 99])  # the longest number drawn has 40 characters
LAYOUTS = st.fixed_dictionaries(
    {"indent": st.sampled_from([None, 0, 1, "\t"]), "ensure_ascii": st.booleans(), "sort_keys": st.booleans()}
)


def read(text: str, window: int, *, keep: bool = True) -> Any:
    with mock.patch.object(pieces, "_WINDOW", window):
        reader = pieces.JsonReader(io.StringIO(text))
        value = reader.value(keep=keep)
        reader.end()
    return value


@settings(max_examples=100, deadline=None)
@given(VALUES, WINDOWS, LAYOUTS, st.sampled_from(["", " \r\n\t"]))
def test_whatever_is_read_in_pieces_of_whatever_size_is_as_json_has_it(value, window, layout, around):
    text = around + json.dumps(value, **layout) + around
    assert read(text, window) == value
    read(text, window, keep=False)  # reads over all of it


@settings(max_examples=100, deadline=None)
@given(VALUES, WINDOWS, st.data())
def test_what_json_refuses_is_refused_in_pieces_too(value, window, data):
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text) - 1))
    cut = data.draw(
        st.sampled_from([text[:at], text[:at] + text[at + 1 :], text[:at] + "]" + text[at + 1 :]])
    )
    try:
        wanted = json.loads(cut)
    except json.JSONDecodeError:
        with pytest.raises(ValueError, match=r"at character \d+$|is no number in JSON"):
            read(cut, window)
    else:
        assert read(cut, window) == wanted


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_what_is_written_in_pieces_is_as_json_has_it(value):
    assert "".join(pieces.dumped(value)) == json.dumps(value, indent=1)


@dataclass
class Point:
    x: int
    y: list[int]


def test_an_iterator_is_written_as_an_array_and_a_dataclass_as_an_object():
    written = "".join(pieces.dumped({"a": iter([1, iter([])]), "b": map(Point, range(2), ([], [3]))}))
    assert written == json.dumps({"a": [1, []], "b": [{"x": 0, "y": []}, {"x": 1, "y": [3]}]}, indent=1)


def test_members_and_elements_are_read_one_by_one():
    reader = pieces.JsonReader(io.StringIO('{"a": [1, [2]], "b": {}, "c": []}'))
    found = []
    for key in reader.members():
        found.append((key, [reader.value() for _ in reader.elements()] if key in "ac" else reader.value()))
    reader.end()
    assert found == [("a", [1, [2]]), ("b", {}), ("c", [])]


def test_no_more_than_a_window_is_here_at_a_time():
    file = io.StringIO("[" + ", ".join(['"0123456789"'] * 100_000) + "]")
    reader = pieces.JsonReader(file)
    longest = 0
    for _ in reader.elements():
        reader.value()
        longest = max(longest, len(reader._text))
    assert longest <= 2 * pieces._WINDOW
