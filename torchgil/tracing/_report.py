"""`Report`: a trace's numbers, and the ways to show them, to keep them and to have them back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

from torchgil._checks import flag
from torchgil._files import write_whole
from torchgil._html import document
from torchgil.tracing import _notebook as notebook
from torchgil.tracing import _text as text
from torchgil.tracing import _timeline as timeline_
from torchgil.tracing._analysis import figures_of, span_of
from torchgil.tracing._chrome import chrome_trace
from torchgil.tracing._figures import Figures, Span
from torchgil.tracing._loading import loaded
from torchgil.tracing._recording import Recording
from torchgil.tracing._saving import as_dict, saved

__all__ = ["Report", "build_report"]


@dataclass(frozen=True, slots=True)
class Report(Figures):
    """What a trace says. ``print(report)`` shows it as tables, sorted by what hurts.

    Attributes:
        wall_s: How long the trace ran, in seconds.
        covered_s: Up to the first event that was dropped: what all other numbers speak of.
        events: How many events were recorded.
        dropped: How many were not, since the buffer was full.
        ops: An `OpReport` of each op; those that hurt most come first.
        threads: A `ThreadReport` of each thread, likewise.
        notes: What was not seen, and why, in words.
        collections: Garbage collections, of all threads together.
        recording: The events themselves.
        segments: What each thread of the recording was to the GIL when: start and end in nanoseconds of the
            monotonic clock, and the state.
        has_timeline: False for one that was saved without it: then there are the numbers alone.

    Example:
        >>> import tempfile, torchgil
        >>> with torchgil.trace() as t:
        ...     _ = torchgil.released.spin(0.01)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     t.report().save_json(f"{folder}/report.json")
        ...     report = torchgil.Report.load(f"{folder}/report.json")  # later, elsewhere
        >>> [op.name for op in report.ops], report.has_timeline
        (['torchgil::spin'], True)
    """

    @property
    def hints(self) -> tuple[str, ...]:
        """What the numbers call for, in words."""
        return text.hints(self)

    def __str__(self) -> str:
        return text.render(self)

    def _repr_html_(self) -> str:
        return notebook.report(self)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain data: what `save_json` writes, without the timeline.

        Returns:
            What ``json.dumps`` takes.
        """
        return as_dict(self)

    def save_json(self, path: str | PathLike[str], *, timeline: bool = True) -> None:
        """Writes the numbers and the timeline to a file, for programs and for `load`.

        The file is JSON. "version" changes when the meaning of a field does.

        Args:
            path: The file to write.
            timeline: False leaves the events out, of which each takes some two bytes, 23 at most. What is
                loaded from such a file has the numbers alone: no picture, Chrome trace or span.

        Raises:
            TypeError: timeline is neither True nor False.
            OSError: The file cannot be written.
        """
        write_whole(path, saved(self, timeline=flag("save_json: timeline", timeline)))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Report:
        """The report that `save_json` wrote, here or on another machine: it shows all that it showed there.

        Needs no torch, and nothing of the program that was traced. What version 1 of the format has, which
        had no timeline, is read too: see `has_timeline`.

        Args:
            path: The file to read.

        Returns:
            A report that is equal to the one that was saved.

        Raises:
            OSError: The file cannot be opened.
            ValueError: It is no report, a damaged one, or one of a newer version of the format.
        """
        return _report(cls, loaded(path))

    def save_chrome_trace(self, path: str | PathLike[str], *, ops: bool = True) -> None:
        """Writes the timeline for Perfetto (ui.perfetto.dev) or chrome://tracing.

        Each thread gets a lane of ops and a lane held/free/waiting/preempted. Clock,
        process and thread ids are those of ``torch.profiler``'s export.

        Args:
            path: The file to write, as JSON.
            ops: False leaves the lane of ops out, for a file that is to be loaded
                together with ``torch.profiler``'s, which has the same ops.

        Raises:
            ValueError: The report was saved without its timeline.
        """
        self._need_timeline("save_chrome_trace")
        write_whole(path, chrome_trace(self, ops=ops))

    def save_html(self, path: str | PathLike[str]) -> None:
        """Writes what a notebook shows, tables and a picture of the timeline, as a page.

        Args:
            path: The file to write.
        """
        write_whole(path, document(self._repr_html_(), title="torchgil: who held the GIL"))

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws the timeline as a picture: who held the GIL when. Needs matplotlib (torchgil[cli]).

        Args:
            path: The file to write, in the format that its name ends with, or else as PNG.

        Raises:
            ImportError: There is no matplotlib.
            ValueError: The report was saved without its timeline.
        """
        self._need_timeline("plot")
        timeline_.draw(self, path)

    def span(self, native_id: int, start_ns: int, end_ns: int) -> Span:
        """What one thread did between two times of the monotonic clock.

        Args:
            native_id: The thread's ``native_id``.
            start_ns, end_ns: The times, as ``time.monotonic_ns()`` had them in that process.

        Returns:
            Its times in each state, as a `ThreadReport` has them.

        Raises:
            ValueError: No such thread, or the report was saved without its timeline.
        """
        self._need_timeline("span")
        for thread, segments in zip(self.recording.threads, self.segments, strict=True):
            if thread.native_id == native_id:
                return span_of(thread, segments, start_ns, end_ns)
        raise ValueError(f"span: no thread with native id {native_id} in this trace")

    def _need_timeline(self, what: str) -> None:
        if not self.has_timeline:
            raise ValueError(
                f"{what}: this report was saved without its timeline, by an older torchgil (version 1 of the "
                "format) or with save_json(timeline=False), and has the numbers alone"
            )


def build_report(recording: Recording, origin_of: Callable[[str], str | None] = lambda name: None) -> Report:
    """The report on a recording; of an op that held the GIL for long, `origin_of` says where it is from."""
    return _report(Report, figures_of(recording, origin_of))


def _report(cls: type[Report], figures: Figures) -> Report:
    return cls(**{field.name: getattr(figures, field.name) for field in fields(figures)})
