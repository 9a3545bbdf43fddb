"""A report's file, read back: what `_saving` writes, and what older versions of it wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torchgil._checks import shown
from torchgil._formatting import shortened
from torchgil._garbage import Collections
from torchgil.tracing._by_name import OpReports, Rows
from torchgil.tracing._figures import Figures, OpReport, ThreadReport
from torchgil.tracing._json_pieces import JsonReader
from torchgil.tracing._packing import EventColumns, unpacked
from torchgil.tracing._plain import Check, flag, made, or_null, seconds, text, texts, whole
from torchgil.tracing._recording import Recording, State, ThreadRecording
from torchgil.tracing._saving import FORMAT, FORMAT_VERSION
from torchgil.tracing._states import states_of

__all__ = ["loaded"]

Read = Callable[[JsonReader, str], Any]  # of the value that the reader is at, and of what it is called

_ROUNDING_S = 1e-6  # of sums
_NO_TIMELINE: dict[str, Any] = {
    **dict.fromkeys(("start_ns", "stop_ns", "complete_until_ns", "unix_offset_ns"), 0),
    "threads": (),
}


def loaded(path: str | os.PathLike[str]) -> Figures:
    """What the file says.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no report, a damaged one, or one of a newer version of the format.
    """
    name = os.fsdecode(path)
    with open(name, encoding="utf-8") as file:
        try:
            return _figures(JsonReader(file))
        except RecursionError:
            why = "it is nested too deeply"
        except ValueError as error:
            why = shortened(str(error), 300)  # a wrong value may be a long one
    raise ValueError(f"{name} cannot be read as a report of torchgil: {why}")


def _figures(reader: JsonReader) -> Figures:
    found = _members(reader, "", _FILE)
    reader.end()
    about = {key: found[key] for key in ("pid", "dropped", "gil_seen", "has_gil")}
    timeline = found.get("timeline")
    recording = Recording(**about, **(timeline or _NO_TIMELINE))
    if timeline and recording.events != found["events"]:
        raise ValueError(f"its timeline is of {recording.events} events, and not of {found['events']}")
    if found["collections"].count != sum(thread.collections.count for thread in found["threads"]):
        raise ValueError("its collections are not those of its threads")
    return Figures(
        **{key: found[key] for key in _NUMBERS},
        ops=found["ops"].reports(about),
        recording=recording,
        segments=tuple(states_of(recording)),
        has_timeline=timeline is not None,
    )


def _members(reader: JsonReader, what: str, known: Mapping[str, Read]) -> dict[str, Any]:
    """The values of an object's members, in whatever order: other programs may sort them."""
    if reader.peek() != "{":
        raise ValueError(f"{what or 'it'} must be an object of JSON")
    found = {}
    for key in reader.members():
        if key in known:
            found[key] = known[key](reader, f"{what}.{key}" if what else key)
        else:
            reader.value(keep=False)
    for key in known:
        if key not in found and key != "timeline":
            raise ValueError(f"{what or 'it'} has no {key}")
    return found


def _elements(reader: JsonReader, what: str) -> Iterator[str]:
    """What to call each element of an array, before it is read."""
    if reader.peek() != "[":
        raise ValueError(f"{what} must be an array")
    return (f"{what}[{i}]" for i in reader.elements())


def _value(check: Check) -> Read:
    return lambda reader, what: check(reader.value(), what)


def _each(read: Read) -> Read:
    return lambda reader, what: tuple(read(reader, each) for each in _elements(reader, what))


def _format(value: Any, what: str) -> None:
    if value != FORMAT:
        raise ValueError(f"its format is {shown(value)}, and not {FORMAT!r}")


def _version(value: Any, what: str) -> None:
    if not 1 <= whole(value, what) <= FORMAT_VERSION:
        raise ValueError(
            f"it has version {value} of the format, and this torchgil reads 1 to {FORMAT_VERSION}: "
            "a newer torchgil wrote it, and can read it"
        )


def _thread_report(value: Any, what: str) -> ThreadReport:
    thread = made(ThreadReport, value, what)
    parts_s = thread.free_s + thread.held_s + thread.wait_s + thread.preempted_s
    if abs(parts_s - thread.wall_s) > _ROUNDING_S or sum(thread.waits_after.values()) > parts_s + _ROUNDING_S:
        raise ValueError(f"{what}: its times do not add up")
    return thread


class _Ops:
    """The ops read so far, as columns: `OpReports` says why."""

    def __init__(self, reader: JsonReader, what: str) -> None:
        self._rows = Rows()
        self._names = bytearray(b"\0")
        self._origins: dict[str, str] = {}
        for each in _elements(reader, what):
            self._add(made(OpReport, reader.value(), each))

    def _add(self, op: OpReport) -> None:
        self._rows.put(op, len(self._names))
        self._names += op.name.encode(errors="replace") + b"\0"
        if op.origin:
            self._origins[op.name] = op.origin

    def reports(self, about: Mapping[str, Any]) -> OpReports:
        recording = Recording(**about, **_NO_TIMELINE, name_table=bytes(self._names))
        return OpReports(recording, self._rows, self._origins.get)


def _piece(reader: JsonReader, what: str) -> bytes:
    return unpacked(reader.value(), what)


def _name_table(reader: JsonReader, what: str) -> bytes:
    return b"".join(_each(_piece)(reader, what))


def _events(reader: JsonReader, what: str) -> EventColumns:
    columns = EventColumns()
    for each in _elements(reader, what):
        columns.add(reader.value(), each)
    return columns


def _state(value: Any, what: str) -> State:
    for state in State:
        if value == state.name.lower():
            return state
    raise ValueError(f"{what} is no state of a thread: {shown(value)}")


def _thread(reader: JsonReader, what: str) -> ThreadRecording:
    found = _members(reader, what, _THREAD)
    events = found.pop("events")
    return ThreadRecording(**found, times_ns=events.times_ns, kinds=bytes(events.kinds), names=events.names)


_THREAD: dict[str, Read] = {
    "name": _value(text),
    "ident": _value(whole),
    "native_id": _value(whole),
    "known_at_start": _value(flag),
    "at_start": _value(or_null(_state)),
    "events": _events,
}

_TIMELINE: dict[str, Read] = {
    **dict.fromkeys(("start_ns", "stop_ns", "complete_until_ns", "unix_offset_ns"), _value(whole)),
    "name_table": _name_table,
    "threads": _each(_thread),
}

_NUMBERS: dict[str, Read] = {
    "wall_s": _value(seconds),
    "covered_s": _value(seconds),
    "events": _value(whole),
    "dropped": _value(whole),
    "threads": _each(_value(_thread_report)),
    "notes": _value(texts),
    "collections": _value(lambda value, what: made(Collections, value, what)),
}

_FILE: dict[str, Read] = {
    "format": _value(_format),
    "version": _value(_version),
    **_NUMBERS,
    "pid": _value(whole),
    "gil_seen": _value(flag),
    "has_gil": _value(flag),
    "ops": _Ops,
    "timeline": lambda reader, what: _members(reader, what, _TIMELINE),
}
