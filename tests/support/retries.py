"""Checks that may be tried again, and the count of how often that happened.

A test in which something must be seen can miss it when the operating system takes the core away at that
moment. `once` tries such a check again. A check that something does not happen is never tried again, because
it would pass by luck: a false alarm in 60 % of all runs is absent in one of three runs in 78 % of the cases.

Each retry is listed at the end of the run, and the run fails where there were more than a few in all, because
then it is not the load of the machine that made the checks miss. A test's report carries its retries, and so
they come from the worker processes of xdist to the process that prints the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

_PROPERTY = "retry"
_of_this_test: list[str] = []


def once(fires: Callable[[], None], attempts: int = 3) -> None:
    """Runs a check that something fires until it passes; what fails each time fails."""
    for _ in range(attempts - 1):
        try:
            fires()
        except AssertionError as error:
            _of_this_test.append((str(error).strip() or "an assertion").partition("\n")[0][:160])
        else:
            return
    fires()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--max-retries",
        type=int,
        default=4,
        metavar="N",
        help="the run fails if its tests needed more retries than N in all (default 4)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # in a worker of xdist
        config.pluginmanager.register(_Summary(config.getoption("--max-retries")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.when == "call":
        item.user_properties += [(_PROPERTY, why) for why in _of_this_test]
        _of_this_test.clear()
    return (yield)


class _Summary:
    """Lists the retries of all tests and judges their number."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._listed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._listed += [
                f"{report.nodeid}: {why}" for name, why in report.user_properties if name == _PROPERTY
            ]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if len(self._listed) > self._allowed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        count = len(self._listed)
        if count:
            terminalreporter.section(
                f"checks that were tried again: {count} (at most {self._allowed} are allowed)"
            )
            terminalreporter.write("".join(f"{line}\n" for line in self._listed))
        if count > self._allowed:
            terminalreporter.line("FAILED: too many retries: something fires too seldom", red=True)
