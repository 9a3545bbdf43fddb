"""pytest plugin: tests that fail when the code they test keeps the GIL.

- ``@pytest.mark.releases_gil(min_free=0.9)``: of the time the test's call takes, this share must
  be free of the GIL.
- ``@pytest.mark.max_gil_hold(seconds)``: no thread may hold the GIL longer in one go meanwhile.
- the fixture ``gil_audit``: ``torchgil.audit``, for a part of a test.
- ``--gil-report``, or ``gil_report`` in the ini file: a table of what was audited, at the end.
- ``--gil-hang=SECONDS``, or ``gil_hang``: a test in which one thread holds the GIL for so long fails, with
  the line; after twice as long the process ends with exit code 70, under xdist one worker.

A test that breaks its marker's limit has failed, is shown as ``G`` or ``GIL HELD``, has a section of its
report that says what is known of it, and is counted in the last line, as "1 held the GIL".

Importing this imports neither torch nor torchgil's extension: that comes with the first test
that asks for it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

from torchgil._checks import number, shown
from torchgil._pytest_hangs import HangGuard, seconds_of
from torchgil._pytest_limits import Breach, Limits, breach_of, longest_hold

if TYPE_CHECKING:
    from torchgil.tracing import Audit
    from torchgil.watching import LongHold

__all__ = ["gil_audit"]

_MARKERS = {
    "releases_gil(min_free=0.9)": "fail unless at least this share of the test's call was free of the GIL "
    "(free: released, and not yet asked for again)",
    "max_gil_hold(seconds)": "fail if a thread held the GIL for longer in one go during the test's call "
    "(Python code that runs for long is asked to give way every few milliseconds)",
}


_limits = pytest.StashKey[Limits]()
_breach = pytest.StashKey[Breach]()
_audits = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torchgil", "who holds the GIL")
    table = "show what was free, held and waited for, of each call that a test audited"
    group.addoption("--gil-report", action="store_true", help=table)
    parser.addini("gil_report", f"true or false, as --gil-report: {table}", type="bool", default=False)
    meaning = (
        "a test fails in which one thread holds the GIL for so long in one go: it is reported at once, with "
        "the stacks, and after twice as long the process is ended with exit code 70, under xdist one worker"
    )
    group.addoption("--gil-hang", metavar="SECONDS", help=meaning)
    parser.addini("gil_hang", f"seconds, as of --gil-hang: {meaning}", default="")


def pytest_configure(config: pytest.Config) -> None:
    for signature, meaning in _MARKERS.items():
        config.addinivalue_line("markers", f"{signature}: {meaning}")
    seconds = seconds_of(config)
    # Where xdist's workers run the tests, this process runs none.
    if seconds is not None and (hasattr(config, "workerinput") or config.getoption("dist", "no") == "no"):
        try:
            guard = HangGuard.begun(seconds)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            config.issue_config_time_warning(
                pytest.PytestConfigWarning(f"--gil-hang: nothing is watched: {error}"), stacklevel=2
            )
        else:
            config.pluginmanager.register(guard, "torchgil-hang-guard")


@pytest.fixture
def gil_audit(request: pytest.FixtureRequest) -> Callable[..., Audit[Any]]:
    """``torchgil.audit(fn, *args, **kwargs)``, counted in ``--gil-report``."""
    item = request.node
    if item.stash.get(_limits, None):
        pytest.fail(
            "the fixture gil_audit cannot be used in a test marked releases_gil or max_gil_hold: both trace "
            "the GIL, and there is one trace at a time; remove one of them",
            pytrace=False,
        )
    audit: Callable[..., Audit[Any]] = _torchgil().audit

    def audit_and_remember(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Audit[Any]:
        record = audit(fn, *args, **kwargs)
        _remember(item, getattr(fn, "__qualname__", repr(fn)), record)
        return record

    return audit_and_remember


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    releases = item.get_closest_marker("releases_gil")
    max_hold = item.get_closest_marker("max_gil_hold")
    if (releases or max_hold) and inspect.iscoroutinefunction(getattr(item, "obj", None)):
        pytest.fail(
            f"{item.name} is a coroutine, and a marker judges a call: its body runs later, on an event loop. "
            "Make it a plain test that calls asyncio.run, or use the fixture gil_audit inside it",
            pytrace=False,
        )
    if releases or max_hold:
        _torchgil()
        item.stash[_limits] = Limits(
            min_free=_number(releases, "min_free", 0.9, at_most=1.0) if releases else None,
            max_hold_s=_number(max_hold, "seconds", None, at_most=math.inf) if max_hold else None,
        )


def _torchgil() -> Any:
    """torchgil, with what traces and watches, for the first test that asks for it; or what mends that."""
    try:
        for wing in ("tracing", "watching"):
            importlib.import_module(f"torchgil.{wing}")
        return importlib.import_module("torchgil")
    except ImportError as error:
        pytest.fail(f"torchgil cannot be used here: {error}", pytrace=False)


def _number(mark: pytest.Mark, name: str, default: float | None, at_most: float) -> float:
    """The one argument of a marker; a wrong one is an error of the test's set-up."""
    given = [*mark.args, *([mark.kwargs[name]] if name in mark.kwargs else [])]
    value = given[0] if given else default
    wanted = f"one number from 0{f' to {at_most:g}' if at_most < math.inf else ', in seconds'}"
    try:
        if not (len(given) > 1 or mark.kwargs.keys() - {name}):
            return number(name, value, 0, at_most, wanted=wanted)
    except (TypeError, ValueError):
        pass
    arguments = ", ".join([*map(shown, mark.args), *(f"{k}={shown(v)}" for k, v in mark.kwargs.items())])
    pytest.fail(f"@pytest.mark.{mark.name}({arguments}): {name} must be {wanted}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    limits = item.stash.get(_limits, None)
    if limits is None or not isinstance(item, pytest.Function):
        return (yield)
    test = item.obj
    found: list[tuple[Audit[Any], list[LongHold]]] = []

    # The test alone, not pytest's own work around it, which would count as held.
    @functools.wraps(test)
    def audited(*args: Any, **kwargs: Any) -> Any:
        record, holds = _audit(functools.partial(test, *args, **kwargs))
        found.append((record, holds))
        return record.result

    item.obj = audited
    try:
        outcome = yield
    finally:
        item.obj = test
    for record, holds in found:  # none, where the test failed by itself
        _remember(item, "", record)
        _judge(item, record, holds, limits)
    return outcome


def _audit(test: Callable[[], Any]) -> tuple[Audit[Any], list[LongHold]]:
    """Under a trace, for the numbers, and beside a watchdog, for the lines."""
    torchgil = _torchgil()
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return torchgil.audit(test), []
    threshold = 2 * sys.getswitchinterval()  # the least that a watchdog can tell from a turn
    with torchgil.Watchdog(threshold, on_hold=lambda hold: None, mean_gap=0.002) as watchdog:
        record = torchgil.audit(test)
    return record, watchdog.holds


def _remember(item: pytest.Item, what: str, record: Audit[Any]) -> None:
    item.stash.setdefault(_audits, []).append(
        {
            "what": what,
            "verdict": record.verdict,
            "wall_s": record.wall_s,
            "free_fraction": record.free_fraction,
            "held_s": record.held_s,
            "wait_s": record.wait_s,
            "longest_hold_s": longest_hold(record)[0],
        }
    )


def _judge(item: pytest.Item, record: Audit[Any], holds: list[LongHold], limits: Limits) -> None:
    if record.verdict == "no GIL":
        return  # nothing can hold it
    if record.verdict == "unknown":
        pytest.fail(f"what it did to the GIL cannot be seen here\n{record}", pytrace=False)
    breach = breach_of(record, holds, limits)
    if breach is not None:
        item.stash[_breach] = breach
        pytest.fail(breach.why, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    audits = item.stash.get(_audits, None)
    if audits:  # of the set-up, the call or the teardown, each in its own report: a test may run again
        # An attribute of plain data: xdist carries it from its workers.
        report.gil_audits = audits  # type: ignore[attr-defined]
        del item.stash[_audits]
    breach = item.stash.get(_breach, None)
    if breach is not None:
        report.sections.insert(0, ("GIL breach", breach.details))  # before what was captured
        report.gil_breach = True  # type: ignore[attr-defined]
        del item.stash[_breach]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """A breach is a failure with a letter of its own."""
    return ("failed", "G", ("GIL HELD", {"red": True})) if _is_breach(report) else None


def _is_breach(report: Any) -> bool:
    # Not one that was expected, or that is to be tried again by another plugin.
    return getattr(report, "gil_breach", False) and report.outcome == "failed"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--gil-report") or config.getini("gil_report"):
        _show_audits(terminalreporter)
    breaches = [report for report in terminalreporter.getreports("failed") if _is_breach(report)]
    if breaches:
        terminalreporter.stats["held the GIL"] = breaches  # counted in the last line, beside "failed"


def _show_audits(terminalreporter: pytest.TerminalReporter) -> None:
    audits = [
        (report.nodeid, audit)
        for reports in terminalreporter.stats.values()
        for report in reports
        for audit in getattr(report, "gil_audits", ())
    ]
    terminalreporter.section("GIL report")
    if not audits:
        terminalreporter.line(
            "No test was audited: mark some with releases_gil or max_gil_hold, or use gil_audit."
        )
        return
    from torchgil._formatting import duration, table

    audits.sort(key=lambda entry: -entry[1]["longest_hold_s"])
    rows = [
        (
            f"{nodeid} {audit['what']}".rstrip(),
            audit["verdict"],
            duration(audit["wall_s"]),
            f"{100 * audit['free_fraction']:.1f} %",
            *(duration(audit[part]) for part in ("held_s", "wait_s", "longest_hold_s")),
        )
        for nodeid, audit in audits
    ]
    head = ("test", "verdict", "wall", "free", "held", "waited", "longest hold")
    terminalreporter.line(table(head, rows))
