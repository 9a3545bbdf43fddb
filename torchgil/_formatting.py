"""Durations, names and tables in words, as all that torchgil prints has them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["duration", "one_line", "shortened", "table"]


def duration(seconds: float) -> str:
    """Three digits and a unit.

    >>> [duration(s) for s in (1.234, 0.0567, 9.997e-4, 7.89e-6, 4.5e-7, 0)]
    ['1.23 s', '56.7 ms', '1.00 ms', '7.89 us', '450 ns', '0']
    """
    if seconds < 999.5e-9:
        return f"{seconds * 1e9:.0f} ns" if seconds else "0"
    value, unit = seconds, "s"
    for smaller, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:  # else it would be rounded to 1000
            value, unit = seconds * factor, smaller
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first aligned left and the others right; each row is a line."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def one_line(name: str) -> str:
    """A name as one can print it within a line, whatever a program has put into it.

    >>> print(one_line("a thread\\nof two lines"))
    a thread\\nof two lines
    """
    return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def shortened(name: str, width: int = 44) -> str:
    """A name that fits into a column.

    >>> shortened("a" * 50, 8)
    'aaaaa...'
    """
    name = one_line(name)
    return name if len(name) <= width else name[: width - 3] + "..."
