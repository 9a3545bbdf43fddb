"""The snippets of docs/writing_ops.md: read, put together, and what they print compared.

The word behind a snippet's language says where it belongs: `cpp plain` and `cpp torch` are parts of one
extension each; `python session` runs after the others in one process, `python alone` in one of its own. The
`text` behind a Python snippet is what it prints; a last line in brackets says how its process ends.
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass
from pathlib import Path

TUTORIAL = Path(__file__).parent.parent.parent / "docs" / "writing_ops.md"
FENCE = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    language: str
    where: str
    text: str
    line: int
    expected: str  # Python alone: the text behind it

    def __str__(self) -> str:
        return f"line {self.line}"


def read(document: str) -> list[Snippet]:
    blocks = list(FENCE.finditer(document))
    snippets = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        language, where, text = block.groups()
        if language == "text":
            continue
        expected = following[3] if following and following[1] == "text" else ""
        line = document.count("\n", 0, block.start()) + 1
        snippets.append(Snippet(language, where, text, line, expected))
    return snippets


SNIPPETS = read(TUTORIAL.read_text(encoding="utf-8"))


def of(language: str, where: str) -> list[Snippet]:
    return [s for s in SNIPPETS if s.language == language and s.where.split()[:1] == where.split()]


def unit(where: str) -> str:
    """The C++ snippets of one extension as one file: from the line that binds on, they are the module's."""
    module = {"plain": "snippets"}.get(where, f"snippets_{where}")
    top, bindings = [], []
    for snippet in of("cpp", where):
        start = re.search(r"^(m\.def|torchgil::)", snippet.text, re.MULTILINE)
        cut = start.start() if start else len(snippet.text)
        top.append(snippet.text[:cut])
        bindings.append(snippet.text[cut:])
    body = "".join(bindings)
    return "\n".join(top) + (f"\nPYBIND11_MODULE({module}, m) {{\n{body}}}\n" if body else "")


def same(expected: str, printed: str) -> bool:
    """Whether it was printed; `...` stands for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(expected, printed, flags)
