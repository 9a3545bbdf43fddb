"""A report over time: its ops, and the picture of who held the GIL when."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from os import PathLike
from typing import Any

from torchgil._pictures import save_figure
from torchgil.tracing._collecting import intervals
from torchgil.tracing._figures import Figures
from torchgil.tracing._recording import STARTS, Kind, OpStack, Recording, State, ThreadRecording
from torchgil.tracing._segments import Segments

__all__ = ["COLLECTING", "STATES", "colours", "draw", "longest", "op_slices"]

STATES = {
    State.HELD: ("held", "terrible", "#c0392b"),
    State.FREE: ("free", "good", "#7fbf7b"),
    State.WAIT: ("waiting", "bad", "#f0a830"),
    State.PREEMPTED: ("preempted", "grey", "#8e7cc3"),
}
COLLECTING = ("collecting garbage", "#00838f")  # a line along the states


def op_slices(recording: Recording, thread: ThreadRecording) -> Iterator[tuple[int, int, str, int, bool]]:
    """Each op call of one thread: start_ns, end_ns, name, depth, entered with the GIL held."""
    stack = OpStack(recording)
    limit = recording.complete_until_ns
    for time_ns, kind, offset in zip(thread.times_ns, thread.kinds, thread.names, strict=True):
        if time_ns >= limit:
            break
        if kind in STARTS:
            stack.start(time_ns, kind, offset)
        elif kind == Kind.OP_END:
            op = stack.end(offset)
            if op:
                yield op.start_ns, time_ns, op.name, len(stack.ops), op.held
    for depth, op in enumerate(stack.ops):  # still open at the end
        yield op.start_ns, limit, op.name, depth, op.held


def draw(report: Figures, path: str | PathLike[str]) -> None:
    """Writes the picture: a row per thread, and one that shows which of them held the GIL."""
    try:
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError(f"plot: this needs {error.name}: pip install 'torchgil[cli]'") from error

    recording = report.recording
    rows = [(t, s) for t, s in zip(recording.threads, report.segments, strict=True) if s]
    rows = rows[:24]
    width = 2400
    begin, end = recording.start_ns, max(recording.complete_until_ns, recording.start_ns + 1)
    figure = Figure(figsize=(13, 1.6 + 0.75 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    span_ms = (end - begin) / 1e6
    for row, (thread, segments) in enumerate(rows):
        pixels = np.array([to_rgb(colour or "white") for colour in colours(segments, begin, end, width)])
        y = len(rows) - 1 - row
        axes.imshow(
            pixels[np.newaxis],
            extent=(0, span_ms, y - 0.2, y + 0.28),
            aspect="auto",
            interpolation="nearest",
        )
        _draw_ops(axes, recording, thread, y, begin, span_ms)
        collected = [
            ((start - begin) / 1e6, (stop - start) / 1e6) for start, stop in longest(thread, segments)
        ]
        axes.broken_barh(collected, (y + 0.3, 0.08), color=COLLECTING[1], linewidth=0)
    axes.set_xlim(0, span_ms)
    axes.set_ylim(-0.5, max(len(rows), 1) - 0.5)
    axes.set_yticks(range(len(rows)), [drawn(thread.name) for thread, _ in reversed(rows)])
    axes.set_xlabel("milliseconds since the trace began")
    axes.set_title("Who held the GIL when", loc="left", fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = [Patch(color=colour, label=name) for name, _, colour in STATES.values()]
    handles += [Patch(color=COLLECTING[1], label=COLLECTING[0])] if report.collections.count else []
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), frameon=False)
    # Agg fills its canvas with the GIL held: 3 ms for a million pixels.
    save_figure(figure, path, dpi=150 if len(rows) <= 8 else 100)


def drawn(name: str) -> str:
    """A name as matplotlib can draw it: no formula, no control character or half of a surrogate pair."""
    shown = name if len(name) <= 60 else name[:57] + "..."
    return "".join(c if c.isprintable() else "\ufffd" for c in shown).replace("$", r"\$")


def longest(thread: ThreadRecording, segments: Segments) -> list[tuple[int, int]]:
    """Start and end of a thread's garbage collections, those alone that one could see in a picture."""
    found = ((start, end) for start, end, _ in intervals(thread, segments))
    return sorted(heapq.nlargest(500, found, key=lambda one: one[1] - one[0]))


def colours(segments: Segments, begin: int, end: int, width: int) -> list[str]:
    """Of `width` columns: the states' colours mixed by their time, "" where there is none."""
    shares = _shares(segments, begin, end, width)
    return [_mixed([shares[state][column] for state in State]) for column in range(width)]


def _mixed(weights: list[float]) -> str:
    total = sum(weights)
    if total <= 0:
        return ""
    shades = [STATES[state][2] for state in State]
    parts = (
        sum(weight * int(shade[at : at + 2], 16) for weight, shade in zip(weights, shades, strict=True))
        / total
        for at in (1, 3, 5)
    )
    return "#" + "".join(f"{round(part):02x}" for part in parts)


def _shares(segments: Segments, begin: int, end: int, width: int) -> list[list[float]]:
    """How much of each of `width` columns each state takes."""
    shares = [[0.0] * width for _ in State]
    scale = width / (end - begin)
    for start, stop, state in segments:
        left, right = (start - begin) * scale, min((stop - begin) * scale, width)
        column = int(left)
        while column < right:
            shares[state][column] += min(right, column + 1) - max(left, column)
            column += 1
    return shares


def _draw_ops(
    axes: Any, recording: Recording, thread: ThreadRecording, y: int, begin: int, span_ms: float
) -> None:
    """A thin bar per outermost op, with its name where there is room for it."""
    outermost = (
        ((start - begin) / 1e6, (end - start) / 1e6, name)
        for start, end, name, depth, _ in op_slices(recording, thread)
        if depth == 0
    )
    bars = heapq.nlargest(2000, outermost, key=lambda bar: bar[1])  # sorting all would hold the GIL for long
    axes.broken_barh([bar[:2] for bar in bars], (y - 0.36, 0.12), color="#34495e", linewidth=0)
    for left, length, name in bars[:40]:
        if length > 0.012 * len(name) * span_ms:
            axes.text(left + length / 2, y - 0.42, drawn(name), ha="center", va="top", fontsize=7)
