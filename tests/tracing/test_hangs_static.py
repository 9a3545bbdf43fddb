"""A hang is told of in an interpreter that has libpython within it, too: Debian's, where there is one."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.support.compiling import needs_compiler
from tests.tracing.hangs import BEGIN, functions
from tests.tracing.test_hangs import DEADLOCK

pytestmark = [needs_compiler, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"

# What it says is the reason to skip.
QUESTION = """
import os, sys, sysconfig
with open("/proc/self/maps") as maps:
    if "libpython" in maps.read():
        raise SystemExit("has its libpython outside")
if sys.version_info < (3, 10):
    raise SystemExit("is older than 3.10")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    raise SystemExit("has no headers")
"""


def why_not() -> str | None:
    """Why there is nothing to try; None: there is."""
    if not (ROOT / "setup.py").exists():
        return "there is no setup.py here to build with"
    if not os.path.exists(PYTHON):
        return f"there is no {PYTHON}"
    asked = subprocess.run([PYTHON, "-c", QUESTION], capture_output=True, text=True)
    return f"{PYTHON} {asked.stderr.strip()}" if asked.returncode else None


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a process of the static interpreter: it finds torchgil, built for it, and no torch."""
    if reason := why_not():
        pytest.skip(reason)
    tree = tmp_path_factory.mktemp("static")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "torchgil"):
        (tree / name).symlink_to(ROOT / name)
    # What builds is written in Python, and is the tests' own.
    tools = [Path(pytest.importorskip(name).__file__).parents[1] for name in ("setuptools", "pybind11")]
    subprocess.run(
        [PYTHON, "setup.py", "-q", "build", "--build-lib=built"],
        cwd=tree,
        env={**os.environ, "TORCHGIL_TORCH": "0", "PYTHONPATH": os.pathsep.join(map(str, tools))},
        check=True,
        timeout=280,
    )
    return {**os.environ, "PYTHONPATH": str(tree / "built")}


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    begin = BEGIN.replace("from torchgil import held\n", "")
    return subprocess.run(
        [PYTHON, "-c", begin + textwrap.dedent(code)],
        cwd=environment["PYTHONPATH"],  # not the tree, where a torchgil for the tests' own interpreter lies
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_is_told_of_with_line_state_and_who_waits(environment: dict[str, str]) -> None:
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
        environment,
    )
    built = environment["PYTHONPATH"]
    assert done.stdout == f"{built}/torchgil/__init__.py until_told sleeps in read ['wants it']\n", done
    (first, *_) = re.split(r"^(?=torchgil: )", done.stderr, flags=re.MULTILINE)[1:]
    assert "  it sleeps in read; 1 thread waits for the GIL\n" in first
    holder, waiting = functions(first)
    assert (holder, waiting[-1]) == (["outer", "until_told"], "wanting")


def test_a_deadlock_ends_the_process_with_both_stacks(environment: dict[str, str]) -> None:
    done = run(
        f"""
        {textwrap.indent(textwrap.dedent(DEADLOCK), " " * 8).strip()}
        with watched(0.2, exit_after=0.5):
            has_the_gil_and_wants_the_mutex()
        """,
        environment,
    )
    assert done.returncode == 70, done
    assert "it holds the GIL and waits for something else; 1 thread waits for the GIL" in done.stderr
    assert ", in has_the_gil_and_wants_the_mutex\n" in done.stderr
    assert ", in has_the_mutex_and_wants_the_gil\n" in done.stderr
