"""What the tests share: code in a child process, and code in several threads at once."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.zygote import Child, zygote

pytest_plugins = ["tests.support.markers", "tests.support.retries", "tests.support.static_python"]

# The same examples in each run, so that a change is judged by what it changed; `make stress` draws others.
hypothesis.settings.register_profile("suite", derandomize="TORCHGIL_STRESS_EXAMPLES" not in os.environ)
hypothesis.settings.load_profile("suite")

# A shell without job control starts background commands with Ctrl-C ignored, which children inherit; a
# handler they do not. So the tests that interrupt a child also run under `make test &`.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_in_child(
    code: str,
    *args: str,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    check: bool = True,
    fresh: bool = False,
    whole_end: bool = False,
) -> Child:
    """Runs code in a process of its own; with check, anything but exit code 0 fails the test.

    It has imported torch and nothing else, before env was set; fresh, it has imported nothing. A
    process or a temporary file that it leaves fails the test in any case.

    The interpreter ends as ever, but then the process does not wait for the destructors of torch's libraries
    unless whole_end is set: for tests of what happens as a process ends.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        # Since 3.12 a fork beside threads warns, and that is just what some children are there to do.
        "PYTHONWARNINGS": "ignore:This process (pid=:DeprecationWarning",
        **(env or {}),
    }
    child = zygote.run(
        textwrap.dedent(code), ["-c", *args], environment, timeout, fresh=fresh, whole_end=whole_end
    )
    if child.left or (check and child.exit_code != 0):
        pytest.fail(f"the child process failed: {child}")
    return child


def run_torchgil(*arguments: object, cwd: str | Path = ".", timeout: float = 240) -> Child:
    """Runs the command line in a process of its own, which has imported torch."""
    code = "import sys; from torchgil.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = zygote.run(code, ["torchgil", *map(str, arguments)], environment, timeout, cwd)
    if child.left:
        pytest.fail(f"the command left something behind: {child}")
    return child


def in_threads(fn: Callable[[int], Any], n: int, timeout: float = 120) -> list[Any]:
    """Calls fn(0) ... fn(n - 1), each in a thread of its own, all let go at once; results in order."""
    start = threading.Barrier(n, timeout=timeout)

    def run(i: int) -> Any:
        start.wait()
        return fn(i)

    with ThreadPoolExecutor(n) as pool:
        return [future.result(timeout) for future in [pool.submit(run, i) for i in range(n)]]
