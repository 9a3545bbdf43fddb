"""A file that is no report, a damaged one or a newer one's is refused by name, with what is wrong in it."""

from __future__ import annotations

import base64
import copy
import json
import random
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchgil
from tests.tracing.kept import is_kept
from tests.tracing.test_report import ADD, MS, report
from tests.tracing.test_report_file import HELD

ONE = report(ADD, HELD, complete_until_ns=80 * MS, dropped=3, notes=("a note",))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("whole") / "r.json"
    ONE.save_json(path)
    return path.read_text()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.json"


def refused(path: Path, content: str | bytes) -> str:
    """What is said of a file of that content."""
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    with pytest.raises(ValueError) as raised:
        torchgil.Report.load(path)
    said = str(raised.value)
    opening = f"{path} cannot be read as a report of torchgil: "
    assert said.startswith(opening)
    assert said.isprintable()
    assert raised.value.__context__ is None
    return said.removeprefix(opening)


def changed(text: str, *at: Any, to: Any = None) -> str:
    """The text with another value at a place, or with none there."""
    data = inner = json.loads(text)
    for key in at[:-1]:
        inner = inner[key]
    if to is None:
        del inner[at[-1]]
    else:
        inner[at[-1]] = to
    return json.dumps(data)


def test_a_file_that_ends_too_early_is_refused_wherever_it_ends(text, path):
    whole = len(text.rstrip())
    for end in range(1, whole, 5):
        said = refused(path, text[:end])
        assert said.startswith(("it ends in the middle", "expecting")), (end, said)
    path.write_text(text[:whole])
    assert torchgil.Report.load(path) == ONE
    assert refused(path, text + "{}") == f"extra data, at character {len(text)}"
    assert refused(path, "") == "it is empty, at character 0"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (" \n", "it ends in the middle, at character 2"),
        ("# a page", "it must be an object of JSON"),
        ("[1]", "it must be an object of JSON"),
        ("{}", "it has no format"),
        ('{"traceEvents": [{}]}', "it has no format"),
        (
            '{"format": "torchgil-watch", "version": 1}',
            "its format is 'torchgil-watch', and not 'torchgil-trace'",
        ),
        (
            '{"format": "torchgil-trace", "version": 3}',
            "this torchgil reads 1 to 2: a newer torchgil wrote it",
        ),
        ('{"format": "torchgil-trace", "version": 0}', "it has version 0 of the format"),
        ('{"format": "torchgil-trace", "version": true}', "version must be an integer of 64 bits, got True"),
        ('{"format" "torchgil-trace"}', "expecting ':', at character 10"),
        ('{"a": 1 "b": 2}', "expecting ',' or '}', at character 8"),
        ("{1: 2}", "expecting a key in double quotes, at character 1"),
        ('{"a": NaN}', "NaN is no number in JSON"),
        ('{"a": ' + "9" * 10_000 + "}", ""),
        ('{"a": ' + "[" * 200_000, "it is nested too deeply"),
        # How deep is too deep for the interpreter's own reader depends on the interpreter.
        ('{"a": ' + "[" * 600 + "1," * 200_000, ("it is nested too deeply", "it ends in the middle")),
        (b"\x89PNG\r\n\x1a\n", "it is no text in UTF-8"),
        ('{"a": "' + "b" * 300_000, "it ends in the middle"),
    ],
    ids=range(18),
)
def test_what_is_no_report_is_refused_with_the_reason(content, said, path):
    assert any(each in refused(path, content) for each in ([said] if isinstance(said, str) else said))


@pytest.mark.parametrize(
    ("at", "to", "said"),
    [
        (("threads", 0, "wait_s"), "long", "threads[0].wait_s must be a number of seconds, got 'long'"),
        (("threads", 1, "collections", "count"), 1.5, "threads[1].collections.count must be an integer"),
        (("threads", 0, "waits_after", "aten::add"), [], "threads[0].waits_after['aten::add'] must be"),
        (("threads", 0, "name"), None, "threads[0] has no name"),
        (("threads", 0, "wall_s"), 0.0, "threads[0]: its times do not add up"),
        (("threads",), {}, "threads must be an array"),
        (("threads",), [], "its collections are not those of its threads"),
        (("ops", 1, "user_scope"), 0, "ops[1].user_scope must be true or false, got 0"),
        (("ops", 1, "calls"), 2**63, "ops[1].calls must be an integer of 64 bits"),
        (("ops", 1, "wall_s"), 1e300, "ops[1].wall_s must be a number of seconds"),
        (("notes",), [1], "notes[0] must be a string, got 1"),
        (("notes",), None, "it has no notes"),
        (("timeline",), 1, "timeline must be an object"),
        (("timeline", "threads", 0, "at_start"), "asleep", "timeline.threads[0].at_start is no state"),
        (("timeline", "threads", 1, "events", 0), "AAAA", "timeline.threads[1].events[0] is damaged"),
        (("timeline", "threads", 1, "events", 0), 5, "timeline.threads[1].events[0] is damaged"),
        (("timeline", "threads", 1, "events"), [], "its timeline is of 6 events, and not of 13"),
        (("timeline", "name_table", 0), "é", "timeline.name_table[0] is damaged"),
        (("timeline", "start_ns"), None, "timeline has no start_ns"),
    ],
    ids=str,
)
def test_a_value_that_is_wrong_or_missing_is_named(at, to, said, text, path):
    assert refused(path, changed(text, *at, to=to)).startswith(said)


def piece(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "data",
    [b"\0", bytes(8) + b"\x63" + bytes(8), (2**63 - 1).to_bytes(8, "little") * 2 + b"\1\1" + bytes(16)],
    ids=["half an event", "no kind of an event", "times out of range"],
)
def test_events_that_are_none_are_refused(data, text, path):
    said = refused(path, changed(text, "timeline", "threads", 0, "events", to=[piece(data)]))
    assert said == "timeline.threads[0].events[0] is damaged"


def test_a_piece_that_would_fill_the_memory_is_refused(text, path):
    path.write_text(changed(text, "timeline", "name_table", to=[piece(bytes(1 << 28))]))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"name_table\[0\] is damaged"):
            torchgil.Report.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(value[key], (*at, key))


def is_refused_or_shown(path: Path) -> bool:
    """Whether it was read. What is read can be shown in all ways."""
    try:
        one = torchgil.Report.load(path)
    except ValueError:
        return False
    is_kept(one)
    return True


VALUES = (None, True, -1, 2**62, 2**64, -0.5, 1e300, "x", "\ud800", [], {}, [1])


def test_whatever_stands_at_a_place_it_is_refused_or_shown(text, path):
    data = json.loads(text)
    read = 0
    for at in places(data):
        for value in random.Random(str(at)).sample(VALUES, 2):
            other = inner = copy.deepcopy(data)
            for key in at[:-1]:
                inner = inner[key]
            inner[at[-1]] = value
            path.write_text(json.dumps(other))
            read += is_refused_or_shown(path)
    assert read > 20  # the control: not all is refused


def test_whichever_byte_is_another_it_is_refused_or_shown(text, path):
    dice = random.Random(0)
    for _ in range(300):
        data = bytearray(text.encode())
        data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        is_refused_or_shown(path)


def test_errors_of_the_file_itself_are_the_systems(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        torchgil.Report.load(tmp_path / "nowhere")
    assert raised.value.filename == str(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        torchgil.Report.load(tmp_path)
    with pytest.raises(TypeError):
        torchgil.Report.load(0)
