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
# torchgil/include are for all; a module.cpp names what each wing registers.
MAY_INCLUDE = {
    # The half that knows the GIL and not torch. What lies in csrc/gil itself is for all of its folders.
    "gil": {
        "gil/collections/collections.h",  # set up as the module is loaded
        # The table for the other half.
        "gil/priority/mark.h",
        "gil/threads/own_threads.h",
        "gil/trace/op_source.h",
    },
    "gil/cpython": {"gil", "gil/collections"},
    "gil/redirect": {"gil"},
    "gil/collections": {"gil"},
    "gil/trace": {"gil", "gil/cpython", "gil/redirect", "gil/collections"},
    "gil/watch": {
        "gil",
        "gil/cpython",
        "gil/collections",
        "gil/priority/line.h",  # where those with priority wait
    },
    "gil/priority": {"gil", "gil/cpython", "gil/redirect"},
    "gil/threads": {"gil", "gil/redirect"},
    # The half that knows torch, and of the other one its table.
    "torch": {"gil/functions.h"},
    "torch/ops": set(),
    "torch/forward": {"torch/gil_functions.h"},
}

# What knows one CPython from another: a new one is that folder's work. pybind11's own way to tell them apart,
# and the public header, which needs no other file, are the exceptions.
KNOWS_VERSIONS = re.compile(r"PY_VERSION_HEX|Py_BUILD_CORE|internal/pycore")

# The C++ files that may see Python, besides every bindings.cpp and module.cpp.
MAY_SEE_PYTHON = {
    "csrc/gil/functions.cpp",  # makes the capsule
    "csrc/gil/redirect/redirect.cpp",  # gives the GIL up while it waits for the loader
    "csrc/gil/priority/priority.cpp",  # the entry points that end a window
    "csrc/torch/gil_functions.cpp",  # finds the capsule
    "csrc/torch/threads.cpp",  # the bindings of one function
    "csrc/torch/forward/priority_window.h",  # a release window
}
MAY_SEE_PYTHON_STEMS = {
    "csrc/torch/forward/arguments",  # what Python arguments become: a part of the bindings
    "csrc/torch/forward/decode",  # likewise for the instruction list
    "csrc/torch/forward/graph",  # a call, from Python's arguments to its results
    "csrc/torch/forward/session",
    "csrc/gil/collections/collections",
    "csrc/gil/collections/paused",
    "csrc/gil/cpython/gil_holder",  # who holds the GIL
    "csrc/gil/cpython/gil_lock",
    "csrc/gil/cpython/frozen_stack",
    "csrc/gil/cpython/thread_states",
    "csrc/gil/trace/gil_events",
    "csrc/gil/trace/op_source",
    "csrc/gil/watch/monitor_bindings",
    "csrc/gil/watch/native_stack",  # where the interpreter's code lies
    "csrc/gil/watch/main_look",  # the prober's look from the main thread
    "csrc/gil/watch/prober",
    "csrc/gil/watch/prober_bindings",
    "csrc/gil/watch/culprit",  # the prober's look at a thread's frames
}
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2)/")
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
    "csrc/gil/watch/prober.cpp": {"PyEval_SaveThread"},  # gives up what take_gil() got: nothing is asked for
}

# Low to high. A module imports from its own layer only its own package.
LAYERS = [
    {
        "_gil",
        "_torch",
        "_built_for",
        "_checks",
        "_copies",
        "_files",
        "_formatting",
        "_headers",
        "_html",
        "_imports",
        "_terminal",
    },
    {"_setting", "_versions", "_version", "_gil_half", "_garbage", "_pictures", "_extension", "_statistics"},
    {"_torch_half", "_priority", "_wakeup"},
    {"_threads"},
    {"ops"},
    {"tracing", "watching", "forward"},
    {"serving"},
    {"compare", "demo", "doctor", "metrics", "_pytest_hangs", "_pytest_limits"},
    {"pytest_plugin", "cli"},
    {"__main__"},
]
MAY_TOUCH_GIL = {"_gil_half", "_priority", "_wakeup", "tracing", "watching"}
MAY_TOUCH_TORCH_HALF = {"_torch_half", "_threads", "ops", "forward", "serving", "compare"}
# What may name torch in an import. The rest works without it, and never imports it.
MAY_NAME_TORCH = {
    "_torch_half",
    "_threads",
    "ops",
    "forward",
    "serving",
    "compare",
    "demo",
}
MAY_NAME_TORCH |= {"doctor/_torch_facts"}  # which doctor runs in a process of its own
# Inside tracing, low to high: events, numbers made of them, ways to show and keep them, what a user calls.
TRACING = [
    {"_pieces", "_json_pieces", "_plain"},
    {"_recording"},
    {"_segments", "_packing"},
    {"_states", "_figures"},
    {"_by_name", "_collecting", "_holding"},
    {"_analysis", "_text", "_timeline"},
    {"_notebook", "_chrome", "_saving"},
    {"_loading"},
    {"_report"},
    {"_trace"},
    {"_audit"},
    {"__init__"},
]


# The tests use modules that are tested by themselves, and of these what has no underscore, but for these.
PRIVATE_IN_TESTS = {"forward._inductor._key"}


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
    folder = path.relative_to(csrc).parent.as_posix()
    places = (path.parent, csrc / folder.split("/")[0], csrc)  # as setup.py has the compiler look
    found = {
        next((f for f in (place / h for place in places) if f.is_file()), path)
        .resolve()
        .relative_to(csrc.resolve())
        for h in includes(path)
    }
    allowed = MAY_INCLUDE.get(folder, set())
    return {
        other.as_posix()
        for other in found
        if other.parent.as_posix() not in (folder, ".")
        and not {other.parent.as_posix(), other.as_posix()} & allowed
    }


def upward_imports(path, root=ROOT):
    """The modules of torchgil that a file of it imports from its own layer or above, or without leave."""
    room = path.relative_to(root / "torchgil").parts[0].removesuffix(".py")
    found = set()
    for module in imports(path, root):
        other = module.split(".")[0]
        if other in (room, "__version__"):
            continue
        # "" is torchgil itself: import from the module that has it. The plugin is a user like others.
        if (not other and room != "pytest_plugin") or (other and layer_of(other) >= layer_of(room)):
            found.add(module)
        if other in ("_gil_half", "_gil") and room not in MAY_TOUCH_GIL | {"_torch_half"}:
            found.add(module)
        if other in ("_torch_half", "_torch") and room not in MAY_TOUCH_TORCH_HALF:
            found.add(module)
    return found


def torch_imports(path, root=ROOT):
    """The imports of torch in a file, wherever and however, but for type checkers alone."""
    tree = ast.parse(path.read_text())
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {module for module in found if module.split(".")[0] == "torch"}


def private_names(modules, root=ROOT):
    """Of names that a file imports those with an underscore that are no modules."""
    found = set()
    for module in modules:
        path, parts = root / "torchgil", module.split(".")
        while parts and any((path / parts[0]).with_suffix(suffix).exists() for suffix in ("", ".py", ".pyi")):
            path /= parts.pop(0)
        if any(part.startswith("_") for part in parts):
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
        path.name in ("bindings.cpp", "module.cpp")
        or name(path) in MAY_SEE_PYTHON
        or name(path.with_suffix("")) in MAY_SEE_PYTHON_STEMS
        # converts an exported graph's Python constants
        or (name(path.parent) == "csrc/torch/forward" and path.stem.startswith("constants"))
    )
    if not allowed:
        seen = [h for h in headers if PYTHON_HEADER.match(h) or h.startswith("torchgil/")]
        assert seen == [], f"{name(path)} is Python-free, but includes {seen}"


@pytest.mark.parametrize("path", CSRC, ids=name)
def test_a_folder_of_cpp_includes_only_from_those_below_it(path):
    assert included_from_elsewhere(path, ROOT / "csrc") == set()


def test_each_folder_of_cpp_is_in_the_rule():
    assert {
        p.relative_to(ROOT / "csrc").as_posix() for p in (ROOT / "csrc").glob("**/") if p != ROOT / "csrc"
    } == (MAY_INCLUDE.keys())


@pytest.mark.parametrize("path", [p for p in CSRC if "gil" in p.parts], ids=name)
def test_the_half_that_knows_the_gil_sees_no_header_of_torch(path):
    assert [h for h in includes(path) if TORCH_HEADER.match(h)] == []


@pytest.mark.parametrize("path", CSRC, ids=name)
def test_one_folder_tells_one_cpython_from_another(path):
    assert name(path.parent) == "csrc/gil/cpython" or KNOWS_VERSIONS.findall(path.read_text()) == []


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_torch_is_imported_only_where_it_may_be(path):
    room = path.relative_to(ROOT / "torchgil").with_suffix("")
    may = {room.parts[0], "/".join(room.parts[:2])} & MAY_NAME_TORCH
    assert may or torch_imports(path) == set()


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
    found = {name(p): private_names(imports(p)) - PRIVATE_IN_TESTS for p in (ROOT / "tests").rglob("*.py")}
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
    modules = {"forward.nogil", "_gil_half.C", "forward._inductor._key", "forward._page.x"}
    assert private(modules) == modules - {"forward.nogil"}
    assert private(modules, {"_gil_half"}) == {"forward._inductor._key", "forward._page.x"}
    assert private_names(modules) == {"forward._inductor._key", "forward._page.x"}  # there is no such module


def test_an_import_of_torch_is_found(tmp_path):
    source = tmp_path / "bad.py"
    source.write_text("import torchgil\nif TYPE_CHECKING:\n    import torch\n")
    assert torch_imports(source) == set()
    source.write_text("def f():\n    from torch.nn import functional\n    importlib.import_module('torch')\n")
    assert torch_imports(source) == {"torch", "torch.nn"}


@pytest.mark.parametrize(
    "line", ["py::gil_scoped_release r;", "PyEval_RestoreThread (state);", "Py_BEGIN_ALLOW_THREADS"]
)
def test_another_way_to_the_gil_is_found(line):
    assert len(by_itself(f"/* */ {line} // PyGILState_Check()")) == 1
    assert by_itself('"PyGILState_Check()" &PyEval_SaveThread') == set()
