"""`Report`: a trace's numbers, and the ways to show them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Any

from torchgil._files import write_whole
from torchgil.tracing import _notebook as notebook
from torchgil.tracing import _text as text
from torchgil.tracing import _timeline as timeline
from torchgil.tracing._analysis import figures_of, span_of
from torchgil.tracing._chrome import chrome_trace
from torchgil.tracing._figures import Figures, Span
from torchgil.tracing._recording import Recording

__all__ = ["Report", "build_report"]

FORMAT = "torchgil-trace"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Report(Figures):
    """What a trace says. ``print(report)`` shows it as tables, sorted by what hurts."""

    @property
    def hints(self) -> tuple[str, ...]:
        """What the numbers call for, in words."""
        return text.hints(self)

    def __str__(self) -> str:
        return text.render(self)

    def _repr_html_(self) -> str:
        return notebook.report(self)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain data, in the format of `save_json`."""
        return self._as_dict([asdict(op) for op in self.ops])

    def _as_dict(self, ops: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "pid": self.recording.pid,
            "wall_s": self.wall_s,
            "covered_s": self.covered_s,
            "events": self.events,
            "dropped": self.dropped,
            "gil_seen": self.recording.gil_seen,
            "has_gil": self.recording.has_gil,
            "collections": asdict(self.collections),
            "threads": [asdict(thread) for thread in self.threads],
            "ops": ops,
            "hints": list(self.hints),
            "notes": list(self.notes),
        }

    def save_json(self, path: str | PathLike[str]) -> None:
        """Writes `to_dict` to a file; "version" changes when the meaning of a field does."""
        write_whole(path, self._json())

    def _json(self) -> Iterator[str]:
        """In pieces: to encode all of it in one call, or to free all of `to_dict`, would hold the GIL."""
        encoder = json.JSONEncoder(indent=1)
        opening = "{\n "
        for key, value in self._as_dict([]).items():
            yield f'{opening}"{key}": '
            opening = ",\n "
            if key == "ops":
                yield from self._ops_json(encoder)
            else:
                for part in encoder.iterencode(value):
                    yield part.replace("\n", "\n ")  # one level further in: within a string there is none
        yield "\n}\n"

    def _ops_json(self, encoder: json.JSONEncoder) -> Iterator[str]:
        opening = "[\n  "
        for op in self.ops:
            yield opening + encoder.encode(asdict(op)).replace("\n", "\n  ")
            opening = ",\n  "
        yield "\n ]" if self.ops else "[]"

    def save_chrome_trace(self, path: str | PathLike[str], *, ops: bool = True) -> None:
        """Writes the timeline for Perfetto (ui.perfetto.dev) or chrome://tracing.

        Each thread gets a lane of ops and a lane held/free/waiting/preempted. Clock,
        process and thread ids are those of ``torch.profiler``'s export.

        Args:
            path: The file to write, as JSON.
            ops: False leaves the lane of ops out, for a file that is to be loaded
                together with ``torch.profiler``'s, which has the same ops.
        """
        write_whole(path, chrome_trace(self, ops=ops))

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws the timeline as a picture: who held the GIL when. Needs matplotlib (torchgil[cli])."""
        timeline.draw(self, path)

    def span(self, native_id: int, start_ns: int, end_ns: int) -> Span:
        """What one thread did between two times of the monotonic clock."""
        for thread, segments in zip(self.recording.threads, self.segments, strict=True):
            if thread.native_id == native_id:
                return span_of(thread, segments, start_ns, end_ns)
        raise ValueError(f"span: no thread with native id {native_id} in this trace")


def build_report(recording: Recording, origin_of: Callable[[str], str | None] = lambda name: None) -> Report:
    """The report on a recording; of an op that held the GIL for long, `origin_of` says where it is from."""
    figures = figures_of(recording, origin_of)
    return Report(**{field.name: getattr(figures, field.name) for field in fields(figures)})
