"""What a user does: an installed torchgil, torchgil new, pip install, pytest."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import torchgil

from .support.compiling import needs_compiler

ROOT = Path(__file__).parent.parent


def run(*command, cwd, limit=800):
    """Runs to the end with exit code 0, or fails the test; returns what it printed."""
    # Nothing of this process's may help, and no package index need be asked: torch and pytest are there.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )
    if done.returncode != 0:
        pytest.fail(f"{command} failed with {done.returncode}:\n{done.stdout[-40000:]}")
    return done.stdout


def installed_torchgil(folder):
    """A fresh environment in which torchgil is installed as a wheel installs it; returns its interpreter.

    What a wheel holds is asked of setup.py, all but the compiled extension, which took minutes: that is the
    one that this suite tests. torch, pytest and pip are this environment's.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "beside.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    run(
        *(python, "setup.py", "-q", "build_py", "--build-lib", site, "dist_info", "--output-dir", site),
        cwd=ROOT,
    )
    package = Path(torchgil.__file__).parent
    for built in [*package.glob("_*.so"), package / "_built_for.py"]:
        shutil.copy(built, site / "torchgil")
    where = run(python, "-c", "import torchgil; print(torchgil.__file__)", cwd=folder)
    assert where.strip() == str(site / "torchgil" / "__init__.py")
    return python


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)  # where others compile as well
def test_a_new_extension_builds_and_its_tests_pass(tmp_path):
    python = installed_torchgil(tmp_path / "env")
    run(python, "-m", "torchgil", "new", "smooth", cwd=tmp_path)
    project = tmp_path / "smooth"
    run(python, "-m", "pip", "install", "--no-build-isolation", "-e", ".", cwd=project)
    report = run(python, "-m", "pytest", "-p", "no:cacheprovider", cwd=project)
    assert " passed" in report
    assert "skipped" not in report
    # The control of the above: a kernel that holds makes them fail.
    (project / "tests" / "test_held.py").write_text(
        "import pytest, torch, smooth\n\n\n"
        "@pytest.mark.releases_gil\n"
        "def test_held():\n"
        "    smooth.held.softsign(torch.randn(2**24))\n"
    )
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "tests/test_held.py"], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout
    assert "releases_gil(min_free=0.9): the GIL was free for" in done.stdout
