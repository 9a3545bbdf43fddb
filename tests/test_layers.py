"""Who may use whom: read from the includes and the imports, so that the tree cannot drift.

Each rule is a function that returns what breaks it in one file of a tree. Each has a control, a tree in which
it is broken. A folder that no rule names fails.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h"))
HEADERS = sorted((ROOT / "torchgil" / "include").rglob("*.h"))
PACKAGE = sorted((ROOT / "torchgil").rglob("*.py"))

# What each folder of csrc may include from other folders: a folder, or one header of it. csrc/clock.h and
# torchgil/include are for all; module.cpp names what each wing registers, and includes nothing.
MAY_INCLUDE = {
    "redirect": set(),
    "ops": set(),
    "tracing": {"redirect"},
    "priority": {"redirect"},
    "threads": {"redirect"},
    "forward": {"priority/mark.h"},
}

# The C++ files that may see Python, besides every bindings.cpp.
MAY_SEE_PYTHON = {
    "csrc/module.cpp",
    "csrc/redirect/redirect.cpp",  # gives the GIL up while it waits for the loader
    "csrc/priority/mark.h",  # a release window
    "csrc/priority/priority.cpp",  # the entry points that end one
}
MAY_SEE_PYTHON_STEMS = {
    "csrc/forward/arguments",  # what Python arguments become: a part of the bindings
    "csrc/forward/decode",  # likewise for the instruction list
    "csrc/tracing/collections",
    "csrc/tracing/gil_events",
    "csrc/tracing/gil_lock",
    "csrc/tracing/op_events",
    "csrc/tracing/monitor_bindings",
    "csrc/tracing/main_look",  # the prober's look from the main thread
    "csrc/tracing/prober",
    "csrc/tracing/prober_bindings",
    "csrc/tracing/culprit",  # the prober's look at a thread's frames
    "csrc/tracing/gil_holder",  # and at who holds the GIL
}
PYTHON_HEADER = re.compile(
    r"^(Python\.h|pybind11/|torch/csrc/(utils|Exceptions|python_headers|autograd/python))"
)

# What asks for the GIL, or says that a thread has it, in another way than torchgil/gil.h does. Before Python
# 3.14 a thread that asks for it while the interpreter shuts down is unwound, which ends the process where a
# destructor is on its stack; and PyGILState_Check() is always 1 once a sub-interpreter was made.
BY_ITSELF = re.compile(
    r"\bgil_scoped_(?:release|acquire)\b|\bPy_(?:BEGIN|END|UNBLOCK|BLOCK)_(?:ALLOW_)?THREADS\b"
    r"|\b(?:PyEval_(?:Save|Restore|Acquire|Release)Thread|PyGILState_(?:Ensure|Release|Check))(?=\s*\()"
)
MAY_BY_ITSELF = {
    "torchgil/include/torchgil/gil.h": {"PyEval_SaveThread", "PyEval_RestoreThread"},  # the one way
    "csrc/tracing/prober.cpp": {"PyEval_SaveThread"},  # gives up what take_gil() got: nothing is asked for
}

# Low to high. A module imports from its own layer only its own package.
LAYERS = [
    {"_C", "_built_for", "_checks", "_files", "_imports", "_setting", "_support", "_version", "headers"},
    {"_build", "_pictures"},
    {"priority", "threads"},
    {"ops"},
    {"tracing", "forward"},
    {"serving"},
    {"compare", "metrics"},
    {"pytest_plugin", "cli"},
    {"__main__"},
]
MAY_TOUCH_C = {"_build", "priority", "threads", "ops", "tracing", "forward"}
# Inside tracing, low to high: events, numbers made of them, ways to show numbers, what a user calls.
TRACING = [
    {"recording", "extension", "background", "thread_life"},  # extension: of what a call is
    {"segments"},
    {"states", "figures"},
    {"collecting", "holding"},
    {"numbers", "text", "timeline"},
    {"html", "chrome"},
    {"report"},
    {"trace", "watchdog", "monitor", "wakeup"},
    {"audit"},
    {"__init__"},
]


# Beside public names the tests use the extension, modules that are tested by themselves, and these functions.
PRIVATE_IN_TESTS = {
    "_build.C",
    "_files",
    "_support",
    "forward.inductor._key",
    "tracing.numbers._holders_meanwhile",
}


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(path, root=ROOT):
    """The torchgil modules a file imports, wherever and however: 'ops.released', 'threads', ''."""
    package = path.parent.relative_to(root).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {m.removeprefix("torchgil").lstrip(".") for m in found if m.split(".")[0] == "torchgil"}


def layer_of(room):
    for height, rooms in enumerate(LAYERS):
        if room in rooms:
            return height
    pytest.fail(f"{room!r} is in no layer: give it one in tests/test_layers.py")


def included_from_elsewhere(path, csrc):
    """The files of other folders of csrc that a file includes without leave."""
    folder, *below = path.relative_to(csrc).parts
    found = {
        next((f for f in (path.parent / h, csrc / h) if f.is_file()), path)
        .resolve()
        .relative_to(csrc.resolve())
        for h in includes(path)
    }
    allowed = MAY_INCLUDE.get(folder, set()) if below else set()
    return {
        other.as_posix()
        for other in found
        if len(other.parts) > 1
        and other.parts[0] != folder
        and not {other.parts[0], other.as_posix()} & allowed
    }


def upward_imports(path, root=ROOT):
    """The modules of torchgil that a file of it imports from its own layer or above, or without leave."""
    room = path.relative_to(root / "torchgil").parts[0].removesuffix(".py")
    found = set()
    for module in imports(path, root):
        other = module.split(".")[0]
        if other in (room, "__version__"):
            continue
        # "" is torchgil itself: import from the module that has it.
        if not other or layer_of(other) >= layer_of(room):
            found.add(module)
        if (module == "_build.C" or other == "_C") and room not in MAY_TOUCH_C:
            found.add(module)
    return found


def private(modules, allowed=frozenset()):
    """The modules and names with an underscore; `allowed` are names, or whole modules of the top."""
    found = {m for m in modules if any(part.startswith("_") for part in m.split("."))}
    return {m for m in found if not {m, m.split(".")[0]} & allowed}


@pytest.mark.parametrize("path", CSRC, ids=name)
def test_cpp_sees_python_only_where_it_may(path):
    headers = includes(path)
    assert "torch/extension.h" not in headers
    assert "torch/torch.h" not in headers
    allowed = (
        path.name == "bindings.cpp"
        or name(path) in MAY_SEE_PYTHON
        or name(path.with_suffix("")) in MAY_SEE_PYTHON_STEMS
        # converts an exported graph's Python constants
        or (name(path.parent) == "csrc/forward" and path.stem.startswith("constants"))
    )
    if not allowed:
        seen = [h for h in headers if PYTHON_HEADER.match(h) or h.startswith("torchgil/")]
        assert seen == [], f"{name(path)} is Python-free, but includes {seen}"


@pytest.mark.parametrize("path", CSRC, ids=name)
def test_a_folder_of_cpp_includes_only_from_those_below_it(path):
    assert included_from_elsewhere(path, ROOT / "csrc") == set()


def test_each_folder_of_cpp_is_in_the_rule():
    assert {p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()} == MAY_INCLUDE.keys()


def by_itself(source):
    """What a C++ source asks for the GIL with, comments and strings aside."""
    without = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', " ", source, flags=re.DOTALL)
    return set(BY_ITSELF.findall(without))


TEMPLATES = sorted(p for p in (ROOT / "torchgil" / "template").rglob("*.cpp.tpl"))


@pytest.mark.parametrize("path", [*CSRC, *HEADERS, *TEMPLATES], ids=name)
def test_the_gil_is_given_up_and_taken_in_one_way(path):
    assert by_itself(path.read_text()) == MAY_BY_ITSELF.get(name(path), set())


@pytest.mark.parametrize("path", HEADERS, ids=name)
def test_the_installed_headers_need_no_other_file_of_ours(path):
    folder = path.parent.parent
    ours = {p.relative_to(folder).as_posix() for p in HEADERS}
    theirs = re.compile(r"[a-z_]+$|unistd\.h$|(ATen|c10|torch|pybind11)/")
    assert [h for h in includes(path) if h not in ours and not theirs.match(h)] == []


@pytest.mark.parametrize("path", [p for p in PACKAGE if p.name != "_built_for.py"], ids=name)
def test_python_layers(path):
    if name(path) != "torchgil/__init__.py":  # the table of public names; it imports them lazily
        assert upward_imports(path) == set()


@pytest.mark.parametrize("path", sorted((ROOT / "torchgil" / "tracing").glob("*.py")), ids=name)
def test_inside_tracing_arrows_point_one_way(path):
    heights = {room: height for height, rooms in enumerate(TRACING) for room in rooms}
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "tracing":
            room = "__init__" if len(parts) == 1 or parts[1] not in heights else parts[1]
            assert heights[room] < heights[path.stem], f"{name(path)} imports torchgil.{module}"


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_outside_the_package_public_names_are_used(folder):
    found = {name(path): private(imports(path)) for path in (ROOT / folder).rglob("*.py")}
    assert {path: modules for path, modules in found.items() if modules} == {}


def test_the_tests_use_public_names_and_few_others():
    found = {name(p): private(imports(p), PRIVATE_IN_TESTS) for p in (ROOT / "tests").rglob("*.py")}
    assert {path: modules for path, modules in found.items() if modules} == {}


def test_an_include_without_leave_is_found(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "forward").mkdir()
    for header in ("clock.h", "ops/kernels.h", "forward/own.h"):
        (tmp_path / header).touch()
    source = tmp_path / "forward" / "bad.cpp"
    good = '#include "clock.h"\n#include "own.h"\n#include <vector>\n#include <forward/own.h>\n'
    source.write_text(good)
    assert included_from_elsewhere(source, tmp_path) == set()
    for line in ('#include "ops/kernels.h"', "  #  include <ops/kernels.h>", '#include "../ops/kernels.h"'):
        source.write_text(good + line)
        assert included_from_elsewhere(source, tmp_path) == {"ops/kernels.h"}
    source.write_text("#include <Python.h>\n#include <pybind11/stl.h>\n// #include <ok.h>\n")
    assert [h for h in includes(source) if PYTHON_HEADER.match(h)] == ["Python.h", "pybind11/stl.h"]
    assert not PYTHON_HEADER.match("torch/csrc/autograd/custom_function.h")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("def f():\n    from torchgil.serving import pool", "serving.pool"),
        ("from ..serving import pool", "serving.pool"),
        ("from .. import compare", "compare"),
        ("from ..serving.pool import ThreadPool", "serving.pool.ThreadPool"),
        ("import torchgil.cli", "cli"),
        ("import torchgil", ""),
        ("importlib.import_module('torchgil.serving')", "serving"),
        ("from torchgil.tracing import text", "tracing.text"),
    ],
)
def test_an_import_from_above_is_found(tmp_path, line, found):
    source = tmp_path / "torchgil" / "forward" / "bad.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        f"from . import graph\nfrom .graph import x\nfrom ..ops import y\nimport torch\n{line}\n"
    )
    assert upward_imports(source, tmp_path) == {found}


def test_a_private_name_is_found():
    modules = {"forward.nogil.nogil", "_build.C", "forward.inductor._key", "tracing._page.x"}
    assert private(modules) == modules - {"forward.nogil.nogil"}
    assert private(modules, {"_build.C"}) == {"forward.inductor._key", "tracing._page.x"}


@pytest.mark.parametrize(
    "line", ["py::gil_scoped_release r;", "PyEval_RestoreThread (state);", "Py_BEGIN_ALLOW_THREADS"]
)
def test_another_way_to_the_gil_is_found(line):
    assert len(by_itself(f"/* */ {line} // PyGILState_Check()")) == 1
    assert by_itself('"PyGILState_Check()" &PyEval_SaveThread') == set()
