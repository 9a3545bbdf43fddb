"""A report as a timeline for Perfetto and chrome://tracing: the Trace Event Format, piece by piece. Pure.

Perfetto (src/trace_processor/importers/json) reads a thread's number as 32 bits and takes all that do not fit
for one thread. Two slices of a thread that overlap, without one lying in the other, it cannot show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

from torchgil.tracing._collecting import intervals
from torchgil.tracing._figures import Figures
from torchgil.tracing._recording import Recording
from torchgil.tracing._timeline import STATES, op_slices

__all__ = ["chrome_events", "chrome_trace"]

# What torch.profiler counts its time stamps from: the start of the quarter of a
# Gregorian year, as kineto's ChromeTraceBaseTime has it. Relative to it, a
# nanosecond still fits into a double.
_QUARTER_NS = 7_889_238 * 1_000_000_000
# Linux numbers its threads below 2**22. The other lanes of a thread lie above all of them, and below 2**31.
_STATES_LANE = 1 << 30
_COLLECTIONS_LANE = 1 << 29
_NO_NUMBER = 1 << 28  # from here on: lanes of threads whose number is not known, or another's
_PIECE = 1000  # events


def chrome_trace(report: Figures, *, ops: bool = True) -> Iterator[str]:
    """The JSON object, in pieces: encoding all of it in one call would hold the GIL for seconds."""
    head = {
        "schemaVersion": 1,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": _base_ns(report.recording),
        "traceEvents": [],
    }
    encode = json.JSONEncoder(separators=(",", ":")).encode
    yield encode(head).removesuffix("]}")
    separator = "\n"
    piece: list[str] = []
    for event in chrome_events(report, ops=ops):
        piece.append(separator + encode(event))
        separator = ",\n"
        if len(piece) == _PIECE:
            yield "".join(piece)
            piece.clear()
    yield "".join(piece) + "\n]}\n"


def chrome_events(report: Figures, *, ops: bool = True) -> Iterator[dict[str, Any]]:
    """Names of lanes, and slices with times in microseconds."""
    recording = report.recording
    shift = recording.unix_offset_ns - _base_ns(recording)
    pid = recording.pid

    def label(kind: str, lane: int, **args: Any) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": pid, "tid": lane, "args": args}

    def slice_(name: str, category: str, lane: int, start_ns: int, end_ns: int) -> dict[str, Any]:
        ts, dur = _times(start_ns + shift, end_ns + shift)
        return {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": lane, "ts": ts, "dur": dur}

    for thread, segments, lane in zip(recording.threads, report.segments, _lanes(recording), strict=True):
        name = thread.name.encode(errors="replace").decode()  # half a surrogate pair is no JSON to some
        if ops:
            yield label("thread_name", lane, name=name)
            yield label("thread_sort_index", lane, sort_index=lane)
            for start_ns, end_ns, op, depth, held in op_slices(recording, thread):
                # Those that were open already, or still: each lies within the one around it.
                start_ns += depth if start_ns == recording.start_ns else 0
                end_ns -= 2 * depth if end_ns == recording.complete_until_ns else 0
                event = slice_(op, "op", lane, start_ns, max(start_ns, end_ns))
                event["args"] = {"entered with the GIL": held}
                yield event
        yield label("thread_name", _STATES_LANE + lane, name=f"{name}: GIL")
        yield label("thread_sort_index", _STATES_LANE + lane, sort_index=lane)
        for start_ns, end_ns, state in segments:
            state_name, colour, _ = STATES[state]
            event = slice_(state_name, "gil", _STATES_LANE + lane, start_ns, end_ns)
            event["cname"] = colour
            yield event
        # In a lane of their own: one may begin in one state, or op, and end in another.
        collected = [*intervals(thread, segments)]
        if collected:
            yield label("thread_name", _COLLECTIONS_LANE + lane, name=f"{name}: garbage collections")
            yield label("thread_sort_index", _COLLECTIONS_LANE + lane, sort_index=lane)
        for start_ns, end_ns, generation in collected:
            title = f"garbage collection of generation {generation}"
            yield slice_(title, "gc", _COLLECTIONS_LANE + lane, start_ns, end_ns)


def _base_ns(recording: Recording) -> int:
    return (recording.start_ns + recording.unix_offset_ns) // _QUARTER_NS * _QUARTER_NS


def _lanes(recording: Recording) -> list[int]:
    """A number for each thread: the system's, unless that is not known, too large, or another's before."""
    lanes: list[int] = []
    others = count(_NO_NUMBER)
    for thread in recording.threads:
        known = 0 < thread.native_id < _NO_NUMBER and thread.native_id not in lanes
        lanes.append(thread.native_id if known else next(others))
    return lanes


def _times(start_ns: int, end_ns: int) -> tuple[float, float]:
    """The start and the duration in microseconds, so that a reader finds the end not later than `end_ns`.

    In a double a microsecond of the calendar has a nanosecond or so of room. Readers make nanoseconds of
    both numbers before they add them, some rounding and some cutting off.
    """
    ts, end = start_ns / 1000, end_ns / 1000
    room = min(int(end * 1000.0) - int(ts * 1000.0), int(end * 1000.0 + 0.5) - int(ts * 1000.0 + 0.5))
    duration_ns = min(end_ns - start_ns, max(room, 0))
    return ts, duration_ns / 1000
