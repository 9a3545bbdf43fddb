"""Where the demo's lines go: coloured on a terminal, plain text when piped; progress on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from torchgil._terminal import Progress, for_whoever_reads, is_terminal
from torchgil.demo import _layout as layout
from torchgil.demo._accelerator import Accelerator
from torchgil.demo._contention import Contention
from torchgil.demo._policies import Policies
from torchgil.demo._scaling import Scaling

__all__ = ["Screen"]

PIPED_WIDTH = 100


class Screen:
    """Shows each section when it is ready, and one line of progress until then."""

    def __init__(self) -> None:
        self._console = _console()
        self._began = time.monotonic()
        self._progress = Progress()
        self._width = shutil.get_terminal_size((PIPED_WIDTH, 24)).columns if self._console else PIPED_WIDTH

    def header(self, machine: dict[str, Any]) -> None:
        self._show(layout.header(machine))

    def policies(self, result: Policies) -> None:
        self._show(layout.policies(result, self._width))

    def scaling(self, result: Scaling, cores: int) -> None:
        self._show(layout.scaling(result, cores))

    def contention(self, result: Contention) -> None:
        self._show(layout.contention(result))

    def accelerator(self, result: Accelerator | str) -> None:
        self._show(layout.accelerator(result))

    def footer(self, machine: dict[str, Any]) -> None:
        self._show(layout.footer(machine))

    def note(self, text: str) -> None:
        self._show([[layout.Part(text, "bold")]])

    def progress(self, text: str) -> None:
        """Says what is measured next. It is written once, before that starts: redrawing would disturb it."""
        self._progress.show(f"{time.monotonic() - self._began:4.0f} s  {text}")

    def _show(self, lines: list[layout.Line]) -> None:
        self._progress.show("")
        with for_whoever_reads():
            for line in lines:
                if self._console is None:
                    print("".join(part.text for part in line).rstrip())
                else:
                    from rich.text import Text

                    text = Text.assemble(*((part.text, part.style) for part in line))
                    self._console.print(text, soft_wrap=True)


def _console() -> Any:
    """rich's console where stdout is a terminal and rich is there, else None."""
    if not is_terminal(sys.stdout):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)
