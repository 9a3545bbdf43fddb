"""The headers that other extensions include: they need nothing else of ours, and share nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

import torchgil

from .conftest import run_in_child
from .support.compiling import compile_extension, needs_compiler

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

extern "C" int answer_of_NAME() {
  torchgil::ReleaseWindow window;
  return torchgil::gil_held() ? 1 : 0;
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


def variant(folder: Path, answer: str) -> str:
    """The headers of another version, in which gil_held() returns `answer`; their folder."""
    shutil.copytree(torchgil.get_include(), folder)
    header = folder / "torchgil" / "gil.h"
    begin = "inline bool gil_held() {"
    assert header.read_text().count(begin) == 1
    other = f"{begin}\n  return {answer};\n}}\n\ninline bool as_it_was() {{"
    header.write_text(header.read_text().replace(begin, other))
    return str(folder)


SHOWN = "namespace torchgil { struct ReleaseWindow {}; inline bool gil_held() { return ANSWER; } }"


@pytest.mark.parametrize("hidden", [True, False], ids=["as they are", "not hidden: the positive control"])
def test_two_versions_of_the_headers_do_not_meet(tmp_path, hidden):
    for name, answer in (("older", "false"), ("newer", "true")):
        source, text = tmp_path / f"{name}.cpp", GIL.replace("NAME", name)
        if not hidden:
            text = text.replace("#include <torchgil/gil.h>", SHOWN.replace("ANSWER", answer))
        source.write_text(text)
        includes = [variant(tmp_path / name, answer)]
        compile_extension(source, includes=includes, suffix=".so")
    child = run_in_child(
        f"""
        import ctypes
        # The worst case: both in the scope where names are looked for.
        older = ctypes.PyDLL("{tmp_path}/older.so", ctypes.RTLD_GLOBAL)
        newer = ctypes.PyDLL("{tmp_path}/newer.so", ctypes.RTLD_GLOBAL)
        print(older.answer_of_older(), newer.answer_of_newer())
        """
    )
    assert child.stdout == ("0 1\n" if hidden else "0 0\n")


def test_get_include_names_the_folder_of_the_headers():
    assert {p.name for p in Path(torchgil.get_include()).glob("torchgil/*.h")} == {
        "arguments.h",
        "gil.h",
        "policies.h",
    }
