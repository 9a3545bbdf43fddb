"""The headers that other extensions include: they need nothing else of ours, and share nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

import torchgil

from .compiling import compile_extension, needs_compiler
from .conftest import run_in_child

pytestmark = needs_compiler

# What an op's binding uses of policies.h; the op itself is not looked for before a call.
POLICIES = """
#include <torchgil/policies.h>

static double twice(double x) {
  return 2 * x;
}

PYBIND11_MODULE(alone, m) {
  torchgil::PolicyModules policies(m, "alone");
  torchgil::def_policies(
      policies, "twice", &twice, [](double x) { return x; }, pybind11::arg("x"));
  torchgil::def_adaptive_threshold(m);
}
"""

GIL = """
#include <torchgil/gil.h>

PYBIND11_MODULE(NAME, m) {
  m.def("answer", [] { return torchgil::gil_held(); });
  m.def("window", [] { torchgil::ReleaseWindow window; return torchgil::gil_held(); });
}
"""


def dynamic_symbols(shared_object):
    done = subprocess.run(
        ["nm", "-DC", "--defined-only", shared_object], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_policies_h_alone_makes_an_extension_and_shows_no_name(tmp_path):
    source = tmp_path / "alone.cpp"
    source.write_text(POLICIES)
    shared_object = compile_extension(source, link_torch=True)
    if shutil.which("nm"):
        assert "PyInit_alone" in dynamic_symbols(shared_object)
        assert "torchgil" not in dynamic_symbols(shared_object)
    run_in_child(
        """
        import sys
        sys.modules["torchgil"] = None  # the extension runs without it
        import torch, alone
        assert [getattr(alone, policy).twice(1.5) for policy in ("released", "held", "adaptive")] == [3.0] * 3
        assert alone.adaptive_threshold() == 100e-6
        alone.set_adaptive_threshold(1)
        assert alone.adaptive_threshold() == 1
        """,
        env={"PYTHONPATH": str(tmp_path)},
    )


def variant(folder: Path, *, hidden: bool) -> Path:
    """The headers of another version: gil_held() always answers False there."""
    shutil.copytree(torchgil.get_include(), folder)
    header = folder / "torchgil" / "gil.h"
    text = header.read_text()
    other = text.replace("return PyGILState_Check() == 1;", "return false;")
    assert other != text
    if not hidden:
        shown = other.replace("visibility push(hidden)", "visibility push(default)")
        assert shown != other
        other = shown
    header.write_text(other)
    return folder


@pytest.mark.parametrize("hidden", [True, False], ids=["as it is", "not hidden: the positive control"])
def test_two_versions_of_the_headers_do_not_meet(tmp_path, hidden):
    versions = {"ours": torchgil.get_include(), "theirs": variant(tmp_path / "theirs", hidden=hidden)}
    if not hidden:  # the one that is loaded first shows its names to the second
        versions = {"theirs": versions["theirs"], "shown": variant(tmp_path / "shown", hidden=False)}
        held = tmp_path / "shown" / "torchgil" / "gil.h"
        held.write_text(held.read_text().replace("return false;", "return PyGILState_Check() == 1;"))
    for name, folder in versions.items():
        source = tmp_path / f"{name}.cpp"
        source.write_text(GIL.replace("NAME", name))
        compile_extension(source, includes=[str(folder)])
    child = run_in_child(
        f"""
        import os, sys
        sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)  # the worst case: names are shared where they can be
        import {", ".join(versions)}
        print(*(module.answer() for module in ({", ".join(versions)})))
        """,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert child.stdout.split() == (["True", "False"] if hidden else ["False", "False"])


def test_get_include_names_the_folder_of_the_headers():
    assert {p.name for p in Path(torchgil.get_include()).glob("torchgil/*.h")} == {
        "arguments.h",
        "gil.h",
        "policies.h",
    }
