"""Ctrl-C at the nth step of a package's own code, for a child that tries each step in turn."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any


class Interrupts:
    """A profiler that raises KeyboardInterrupt once, as Ctrl-C would.

    That is raised where a function begins or a call of one has ended, never within one in C.

    Args:
        nth: The step to raise at.
        ours: How the names of the files begin whose steps count.
        without_a_step: Functions that return to code which goes on without a step: a with statement goes on
            so from ``__enter__``, and who resumed a generator from that.

    Attributes:
        left: Above 0 where there were fewer steps.
        at: The step that it was: event, function, and what that called.
    """

    def __init__(self, nth: int, *ours: str, without_a_step: tuple[str, ...] = ("__enter__",)) -> None:
        self.left, self.at = nth, ("", "", "")
        self._ours, self._without_a_step = ours, without_a_step

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        code = frame.f_code
        no_step = event == "return" and code.co_name in self._without_a_step
        # From 3.14 on Ctrl-C can come there, and then a with statement calls no __exit__, whoever wrote it:
        # python/cpython#148874.
        no_step |= event == "c_return" and getattr(called, "__name__", "") == "__enter__"
        # Before 3.11 an exception of a profiler's, of no signal's, ends a resumed generator without its
        # `finally`.
        no_step |= sys.version_info < (3, 11) and event == "call" and frame.f_lasti >= 0
        if event == "c_call" or no_step or not code.co_filename.startswith(self._ours):
            return
        self.left -= 1
        if not self.left:
            sys.setprofile(None)
            self.at = event, code.co_name, getattr(called, "__name__", "")
            raise KeyboardInterrupt
