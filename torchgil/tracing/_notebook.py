"""A report in a notebook: tables and the timeline as a picture, for dark and light pages alike. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from torchgil._formatting import duration, one_line, shortened
from torchgil._html import page, paragraph, table
from torchgil.tracing import _text as text
from torchgil.tracing import _timeline as timeline
from torchgil.tracing._figures import Figures
from torchgil.tracing._segments import Segments

__all__ = ["picture", "report"]

_COLUMNS = 480  # of the picture
_ROWS = 24
_NAME, _WIDTH, _ROW = 150, 820, 26


def report(figures: Figures, *, top: int = 15) -> str:
    """The whole report, with the `top` ops that hurt most."""
    parts = [paragraph(text.headline(figures), strong=True)]
    if figures.recording.gil_seen and figures.threads:
        parts += [picture(figures)] if figures.has_timeline else []
        parts.append(table(*text.thread_table(figures)))
    if figures.ops:
        parts.append(table(*text.op_table(figures, top)))
    if len(figures.ops) > top:
        parts.append(paragraph(f"({len(figures.ops) - top} more ops)"))
    parts += [paragraph(line)] if (line := text.collections_line(figures)) else []
    parts += [paragraph(f"hint: {hint}") for hint in text.hints(figures)]
    parts += [paragraph(f"note: {one_line(note)}") for note in figures.notes]
    return page(*parts)


def picture(figures: Figures) -> str:
    """Who held the GIL when: a row per thread, as an SVG."""
    recording = figures.recording
    begin, end = recording.start_ns, max(recording.complete_until_ns, recording.start_ns + 1)
    rows = [
        (thread, segments)
        for thread, segments in zip(recording.threads, figures.segments, strict=True)
        if segments
    ][:_ROWS]
    height = _ROW * len(rows) + 44
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        'style="max-width:100%;font:12px sans-serif" xmlns="http://www.w3.org/2000/svg">'
        "<title>Who held the GIL when</title>"
    ]
    for number, (thread, segments) in enumerate(rows):
        y = number * _ROW + 4
        short = shortened(thread.name, 22)
        parts.append(_words(_NAME - 8, y + 13, short, "end"))
        parts += [
            f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>'
            for left, width, colour in _stripes(segments, begin, end)
        ]
        scale = (_WIDTH - _NAME) / (end - begin)
        parts += [
            f'<rect x="{_NAME + (start - begin) * scale:.1f}" y="{y + 19}" '
            f'width="{max((stop - start) * scale, 0.5):.1f}" height="4" fill="{timeline.COLLECTING[1]}"/>'
            for start, stop in timeline.longest(thread, segments)
        ]
    y = len(rows) * _ROW + 16
    parts += [_words(_NAME, y, "0", "start"), _words(_WIDTH, y, duration((end - begin) * 1e-9), "end")]
    x = _NAME
    legend = [(name, colour) for name, _, colour in timeline.STATES.values()]
    legend += [timeline.COLLECTING] if figures.collections.count else []
    for name, colour in legend:
        parts.append(f'<rect x="{x}" y="{y + 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(_words(x + 17, y + 20, name, "start"))
        x += 100
    return "".join(parts) + "</svg>"


def _words(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor">{escape(words)}</text>'


def _stripes(segments: Segments, begin: int, end: int) -> Iterator[tuple[float, float, str]]:
    """x, width and colour of each stretch of columns that look the same."""
    width = (_WIDTH - _NAME) / _COLUMNS
    colours = timeline.colours(segments, begin, end, _COLUMNS)
    start = 0
    for column in range(1, _COLUMNS + 1):
        if column == _COLUMNS or colours[column] != colours[start]:
            if colours[start]:
                yield _NAME + start * width, (column - start) * width, colours[start]
            start = column
