"""``--gil-hang``: a test in which the GIL is stuck fails, with the line; pytest_plugin registers it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from traceback import FrameSummary

    from torchgil.watching import Hang, Watchdog

__all__ = ["HangGuard", "seconds_of"]


def seconds_of(config: pytest.Config) -> float | None:
    """What the command line, or else the ini file, asks for; None: nothing."""
    given = config.getoption("--gil-hang")
    if given is None:
        given = config.getini("gil_hang") or None
    if given is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(given)
        if 0.1 <= seconds <= 3600:
            return seconds
    raise pytest.UsageError(f"--gil-hang, or gil_hang: from 0.1 to 3600 seconds are expected, got {given!r}")


class HangGuard:
    """Watches all tests. A stuck GIL is told of at once, since none of them, nor pytest, can run meanwhile.

    Where it comes free in time, the test fails and the run goes on; where it does not, the process is ended,
    which under xdist is one worker.
    """

    def __init__(self, watchdog: Watchdog, output: int) -> None:
        self._watchdog = watchdog
        self._output = output
        self._known = 0  # hangs that a test has failed for

    @classmethod
    def begun(cls, seconds: float) -> HangGuard:
        """Starts to watch. Tests' output is captured later on: what is told goes to the stderr of now."""
        from torchgil.watching import Watchdog

        output = os.dup(_stderr())
        try:
            watchdog = Watchdog(
                hang=seconds,
                exit_after=2 * seconds,
                on_hold=lambda hold: None,
                on_hang=lambda hang: None,
                max_holds=100_000,  # none that a test is to fail for may be pushed out
                hang_output=output,
            )
            watchdog.start()
        except BaseException:
            os.close(output)
            raise
        return cls(watchdog, output)

    def pytest_collection_finish(self) -> None:
        """What hung while modules were imported has been told of, and is no test's."""
        self._known = len(self._watchdog.hangs)

    def pytest_unconfigure(self) -> None:
        self._watchdog.stop()
        os.close(self._output)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        hangs = self._watchdog.hangs[self._known :]
        if hangs:
            self._known += len(hangs)
            _fail(report, hangs)
        return report


def _fail(report: pytest.TestReport, hangs: list[Hang]) -> None:
    text = "\n".join(_below_pytest(hang).format().rstrip() for hang in hangs)
    if report.outcome == "failed" or hasattr(report, "wasxfail"):
        report.sections.append(("The GIL was stuck", text))
    else:
        report.outcome = "failed"
        report.longrepr = f"the GIL was stuck (--gil-hang): {text}"


def _below_pytest(hang: Hang) -> Hang:
    waiting = tuple(dataclasses.replace(each, stack=_cut(each.stack)) for each in hang.waiting)
    return dataclasses.replace(hang, stack=_cut(hang.stack), waiting=waiting)


def _cut(stack: tuple[FrameSummary, ...]) -> tuple[FrameSummary, ...]:
    """Without the some thirty frames that lead to a test or a fixture; all where pytest itself hangs."""
    runners = tuple(f"{os.sep}{name}{os.sep}" for name in ("_pytest", "pluggy", "xdist", "execnet"))
    is_runners = [any(name in frame.filename for name in runners) for frame in stack]
    with contextlib.suppress(ValueError):  # another thread's, or pytest's own
        return stack[is_runners.index(False, is_runners.index(True)) :]
    return stack


def _stderr() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, ValueError, OSError):  # somebody has put another object there
        return 2
