"""Parts of what a notebook shows, for dark and light pages alike."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["document", "page", "paragraph", "preformatted", "table"]

# Colours and sizes of the page around it, but for lines that are visible on any ground.
_CELL = "padding:2px 10px;text-align:{};border-bottom:1px solid rgba(128,128,128,.35)"


def page(*parts: str) -> str:
    """The parts below each other."""
    return f'<div style="max-width:100%;overflow-x:auto">{"".join(parts)}</div>'


def document(body: str, *, title: str) -> str:
    """A page of its own, for a browser."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f'<body style="font-family:sans-serif">\n{body}\n</body>\n</html>\n'
    )


def paragraph(line: str, *, strong: bool = False) -> str:
    words = escape(line)
    return f"<p>{f'<strong>{words}</strong>' if strong else words}</p>"


def preformatted(words: str) -> str:
    """Text as it stands, such as a stack."""
    return f'<pre style="margin:4px 0">{escape(words)}</pre>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first aligned left and the others right."""

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        return "".join(
            f'<{tag} style="{_CELL.format(side)}">{escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        '<table style="border-collapse:collapse;background:none;margin:6px 0">'
        f"<thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
    )
