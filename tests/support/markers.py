"""The markers that follow from what a test is: `process`, `timing`, `unit`; others are set by hand.

`process`: the test, a fixture of it, or a function of the tests that one of them calls, runs code in a
process of its own. Read from the compiled code, so that nobody has to think of it.

`timing`: what the test sees depends on when threads get a core, as with the watchdog. By file, since no
name in the code says so.

`unit`: the rest, which is what to run after each change: `pytest -m unit`. Examples in docstrings have no
marker.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType

import pytest

RUNS_A_PROCESS = {"zygote", "subprocess", "runpytest_subprocess", "multiprocessing"}
TIMING = (
    "tests/priority/",
    "tests/ops/test_adaptive.py",
    "tests/ops/test_concurrency.py",
    "tests/ops/test_progress.py",
    "tests/serving/test_batcher_waiting.py",
    "tests/test_cuda.py",
    "tests/tracing/test_audit.py",
    "tests/tracing/test_by_address.py",
    "tests/tracing/test_collections.py",
    "tests/tracing/test_extension.py",
    "tests/tracing/test_monitor.py",
    "tests/tracing/test_timeline.py",
    "tests/tracing/test_trace.py",
    "tests/tracing/test_two_witnesses.py",
    "tests/tracing/test_watchdog.py",
    "tests/tracing/test_watchdog_life.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function):
            continue  # an example in a docstring
        found = {marker.name for marker in item.iter_markers()} & {"peer", "third_party"}
        if runs_a_process(item):
            found.add("process")
        if item.nodeid.startswith(TIMING):
            found.add("timing")
        for name in found or {"unit"}:
            item.add_marker(name)


def runs_a_process(item: pytest.Function) -> bool:
    fixtures = [one.func for defs in item._fixtureinfo.name2fixturedefs.values() for one in defs]
    return bool(RUNS_A_PROCESS & names_in(item.function, *fixtures))


def names_in(*functions: Callable[..., object]) -> set[str]:
    """The names that functions use, and those used by the functions of the tests that they call."""
    found: set[str] = set()
    left, seen = [inspect.unwrap(f) for f in functions], set()
    while left:
        function = left.pop()
        if function in seen or not isinstance(function, FunctionType):
            continue
        seen.add(function)
        used = {name for code in nested(function.__code__) for name in code.co_names}
        found |= used
        called = [function.__globals__.get(name) for name in used]
        left += [f for f in called if getattr(f, "__module__", "").startswith("tests.")]
    return found


def nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)
