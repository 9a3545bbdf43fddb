"""An interpreter that has libpython within it, as Debian's has, with torchgil built for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def static_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
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
