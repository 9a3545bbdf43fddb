"""A hang is told of in an interpreter that has libpython within it, too: Debian's, where there is one."""

from __future__ import annotations

import re
import subprocess
import textwrap

import pytest

from tests.support.compiling import needs_compiler
from tests.support.static_python import PYTHON
from tests.tracing.hangs import BEGIN, functions
from tests.tracing.test_hangs import DEADLOCK

pytestmark = [needs_compiler, pytest.mark.slow]


def run(code: str, static_environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    begin = BEGIN.replace("from torchgil import held\n", "")
    return subprocess.run(
        [PYTHON, "-c", begin + textwrap.dedent(code)],
        cwd=static_environment["PYTHONPATH"],  # the tree's torchgil is for the tests' own interpreter
        env=static_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_is_told_of_with_line_state_and_who_waits(static_environment: dict[str, str]) -> None:
    done = run(
        """
        def outer():
            until_told(0.6)
        with watched(0.1) as watchdog:
            threading.Thread(target=wanting, name="wants it", daemon=True).start()
            outer()
            time.sleep(0.1)
        (hang,) = watchdog.hangs
        print(torchgil.__file__, hang.function, hang.state, [each.thread_name for each in hang.waiting])
        assert "torch" not in sys.modules
        """,
        static_environment,
    )
    built = static_environment["PYTHONPATH"]
    assert done.stdout == f"{built}/torchgil/__init__.py until_told sleeps in read ['wants it']\n", done
    (first, *_) = re.split(r"^(?=torchgil: )", done.stderr, flags=re.MULTILINE)[1:]
    assert "  it sleeps in read; 1 thread waits for the GIL\n" in first
    holder, waiting = functions(first)
    assert (holder, waiting[-1]) == (["outer", "until_told"], "wanting")


def test_a_deadlock_ends_the_process_with_both_stacks(static_environment: dict[str, str]) -> None:
    done = run(
        f"""
        {textwrap.indent(textwrap.dedent(DEADLOCK), " " * 8).strip()}
        with watched(0.2, exit_after=0.5):
            has_the_gil_and_wants_the_mutex()
        """,
        static_environment,
    )
    assert done.returncode == 70, done
    assert "it holds the GIL and waits for something else; 1 thread waits for the GIL" in done.stderr
    assert ", in has_the_gil_and_wants_the_mutex\n" in done.stderr
    assert ", in has_the_mutex_and_wants_the_gil\n" in done.stderr
