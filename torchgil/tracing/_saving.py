"""A report as plain data, and as the text of its file. `_loading` reads it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torchgil.tracing import _text as text
from torchgil.tracing._figures import Figures
from torchgil.tracing._json_pieces import dumped
from torchgil.tracing._packing import packed, packed_events
from torchgil.tracing._recording import Recording, ThreadRecording

__all__ = ["FORMAT", "FORMAT_VERSION", "as_dict", "saved"]

FORMAT = "torchgil-trace"
FORMAT_VERSION = 2  # 1 had no timeline


def as_dict(figures: Figures) -> dict[str, Any]:
    """The numbers as plain data."""
    return {
        **_numbers(figures),
        "collections": asdict(figures.collections),
        "threads": [asdict(thread) for thread in figures.threads],
        "ops": [asdict(op) for op in figures.ops],
    }


def _numbers(figures: Figures) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "pid": figures.recording.pid,
        "wall_s": figures.wall_s,
        "covered_s": figures.covered_s,
        "events": figures.events,
        "dropped": figures.dropped,
        "gil_seen": figures.recording.gil_seen,
        "has_gil": figures.recording.has_gil,
        "collections": figures.collections,
        "threads": figures.threads,
        "ops": figures.ops,
        "hints": list(text.hints(figures)),
        "notes": list(figures.notes),
    }


def saved(figures: Figures, *, timeline: bool) -> Iterator[str]:
    """The text of the file, in pieces: to have all of it as data, and to free that, would hold the GIL."""
    data = _numbers(figures)
    if timeline and figures.has_timeline:
        data["timeline"] = _timeline(figures.recording)
    yield from dumped(data)
    yield "\n"


def _timeline(recording: Recording) -> dict[str, Any]:
    return {
        "start_ns": recording.start_ns,
        "stop_ns": recording.stop_ns,
        "complete_until_ns": recording.complete_until_ns,
        "unix_offset_ns": recording.unix_offset_ns,
        "name_table": packed(recording.name_table),
        "threads": map(_thread, recording.threads),
    }


def _thread(thread: ThreadRecording) -> dict[str, Any]:
    return {
        "name": thread.name,
        "ident": thread.ident,
        "native_id": thread.native_id,
        "known_at_start": thread.known_at_start,
        "at_start": None if thread.at_start is None else thread.at_start.name.lower(),
        "events": packed_events(thread),
    }
