"""Who may use whom: read from the includes and the imports, so that the tree cannot drift."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h"))
HEADERS = sorted((ROOT / "torchgil" / "include").rglob("*.h"))
PACKAGE = sorted((ROOT / "torchgil").rglob("*.py"))
WINGS = {"ops", "tracing", "forward"}

# The C++ files that may see Python, besides every bindings.cpp.
MAY_SEE_PYTHON = {
    "csrc/module.cpp",
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

# Low to high. A module imports from its own layer only its own package.
LAYERS = [
    {"_C", "_built_for", "_files", "_imports", "_support", "_version", "headers"},
    {"_build"},
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
    {"recording", "extension", "background"},  # extension: of what a call is, not of the trace
    {"states", "figures"},
    {"collecting"},
    {"numbers", "text", "timeline"},
    {"html"},
    {"report"},
    {"trace", "watchdog", "monitor", "wakeup"},
    {"audit"},
    {"__init__"},
]


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """The torchgil modules a file imports, wherever in it: 'ops.released', 'threads', ''."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("torchgil").lstrip(".") for a in node.names if is_ours(a.name)}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and is_ours(node.module or ""):
            base = (node.module or "").removeprefix("torchgil").lstrip(".")
            found |= {f"{base}.{a.name}".lstrip(".") for a in node.names}
    return found


def is_ours(module):
    return module.split(".")[0] == "torchgil"


def layer_of(room):
    for height, rooms in enumerate(LAYERS):
        if room in rooms:
            return height
    pytest.fail(f"{room!r} is in no layer: give it one in tests/test_layers.py")


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
def test_no_cpp_wing_includes_another(path):
    wing = path.relative_to(ROOT / "csrc").parts[0]
    if wing in WINGS:
        others = {h.split("/")[0] for h in includes(path)} & WINGS - {wing}
        assert others == set(), f"{name(path)} includes from {others}"


@pytest.mark.parametrize("path", HEADERS, ids=name)
def test_the_installed_headers_need_no_other_file_of_ours(path):
    folder = path.parent.parent
    ours = {p.relative_to(folder).as_posix() for p in HEADERS}
    theirs = re.compile(r"[a-z_]+$|unistd\.h$|(ATen|c10|torch|pybind11)/")
    assert [h for h in includes(path) if h not in ours and not theirs.match(h)] == []


@pytest.mark.parametrize("path", [p for p in PACKAGE if p.name != "_built_for.py"], ids=name)
def test_python_layers(path):
    room = path.relative_to(ROOT / "torchgil").parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the table of public names; it imports them lazily
    for module in imports(path):
        other = module.split(".")[0]
        if other == room or other == "__version__":
            continue
        assert other, f"{name(path)} imports torchgil itself: import from the module that has it"
        assert layer_of(other) < layer_of(room), f"{name(path)} ({room}) imports torchgil.{module}"
        if module == "_build.C" or other == "_C":
            assert room in MAY_TOUCH_C, f"{name(path)} touches the C++ extension"


@pytest.mark.parametrize("path", sorted((ROOT / "torchgil" / "tracing").glob("*.py")), ids=name)
def test_inside_tracing_arrows_point_one_way(path):
    heights = {room: height for height, rooms in enumerate(TRACING) for room in rooms}
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "tracing":
            room = "__init__" if len(parts) == 1 or parts[1] not in heights else parts[1]
            assert heights[room] < heights[path.stem], f"{name(path)} imports torchgil.{module}"


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tests"])
def test_outside_the_package_public_names_are_used(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for module in imports(path):
            if folder != "tests":
                assert not any(part.startswith("_") for part in module.split(".")), f"{name(path)}: {module}"


def test_the_detectors_detect(tmp_path):
    """The positive control of this file's own readers."""
    bad = tmp_path / "bad.cpp"
    bad.write_text('#include <Python.h>\n  #  include "ops/kernels.h"\n// #include <ok.h>\n')
    assert includes(bad)[:2] == ["Python.h", "ops/kernels.h"]
    assert PYTHON_HEADER.match("Python.h")
    assert PYTHON_HEADER.match("pybind11/stl.h")
    assert not PYTHON_HEADER.match("torch/csrc/autograd/custom_function.h")
    source = tmp_path / "bad.py"
    source.write_text("def f():\n    from torchgil.serving import pool\n    import torchgil._build\n")
    assert imports(source) == {"serving.pool", "_build"}
