"""Which extension a call ran in: named where it is certain, and nothing said where it is not."""

import functools
import importlib.util
import json
import math
import sys

import pytest
import torch

import torchgil
from torchgil._extension import of_callable, of_line, of_op

SHARED_OBJECT = sys.modules["torchgil._torch"].__file__


@pytest.mark.parametrize(
    "fn",
    [
        torchgil.held.spin,
        functools.partial(torchgil.held.spin, 0.1),
        torchgil.Latch().open,
        torchgil.Latch,
    ],
    ids=["a function", "a partial", "a method", "a class"],
)
def test_a_callable_names_its_extension(fn):
    found = of_callable(fn)
    assert found.path == SHARED_OBJECT
    assert found.how.startswith("the module of torchgil._torch")
    assert "py::call_guard<py::gil_scoped_release>()" in str(found)


@pytest.mark.parametrize(
    "fn", [len, [].sort, str.join, math.sin, json.dumps, lambda: 0, torch.nn.Linear(1, 1)]
)
def test_nothing_is_said_of_python_and_what_belongs_to_it(fn):
    assert of_callable(fn) is None


LINES = {
    "torchgil.held.spin(0.1)": True,
    "spin(0.1)": True,
    "value = held.spin(\n        seconds)": True,
    "if spin(0.1): pass": True,
    "spin(len([]))": False,  # either may have held it
    "spin(0.1); sorted([])": False,
    "seconds @ spin": False,
    "value = seconds @ spin(0.1)": False,  # the operator may have
    "other(0.1)": False,  # what a parameter is cannot be looked up
    "sorted([])": False,
    "missing.spin(0.1)": False,
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_names_it_where_one_call_is_all_it_does(tmp_path, monkeypatch, line):
    path = tmp_path / "called.py"
    path.write_text(
        f"import torchgil\nfrom torchgil import held\n\n\ndef f(other, seconds=0.1):\n    {line}\n"
    )
    spec = importlib.util.spec_from_file_location("called", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "called", module)
    spec.loader.exec_module(module)
    module.spin = torchgil.held.spin
    assert (of_line(str(path), 6) is not None) is LINES[line]


AROUND = {
    "a string that looks like code": ('"""\n' + "def f():\n" * 50 + '"""\n', True),
    "other branches": ("if True:\n    a = 1\nelse:\n    a = 2\ntry:\n    pass\nfinally:\n    pass\n", True),
    "brackets": ("values = [\n    1,\n]\nother = (\n    2\n)\n", True),
    "a decorator": ("import functools\n@functools.cache\ndef g():\n    pass\n", True),
    "many short statements": ("".join(f"a{i} = {i}\n" for i in range(3000)), True),
    "the name bound anew": ("def g():\n    for held in ():\n        pass\n", False),
    "what takes long to parse": ("values = [\n" + "    1,\n" * 3000 + "]\n", False),
}


@pytest.mark.parametrize("what", AROUND)
def test_what_stands_around_a_line_is_read_in_pieces(tmp_path, monkeypatch, what):
    around, named = AROUND[what]
    path = tmp_path / "around.py"
    line = "held.spin(0.1)\n"
    path.write_text(f"from torchgil import held\n{around}\ndef f():\n    {line}\n{around}")
    spec = importlib.util.spec_from_file_location("around", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "around", module)
    spec.loader.exec_module(module)
    number = path.read_text().splitlines().index("    held.spin(0.1)") + 1
    assert (of_line(str(path), number) is not None) is named
    assert of_line(str(path), number + 1) is None


def test_the_watchdog_names_it(tmp_path, monkeypatch):
    path = tmp_path / "holding.py"
    path.write_text("import torchgil\n\ndef hold():\n    torchgil.held.spin(0.3)\n")
    spec = importlib.util.spec_from_file_location("holding", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "holding", module)
    spec.loader.exec_module(module)
    with torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None) as watchdog:
        module.hold()
    (hold,) = [hold for hold in watchdog.holds if hold.filename == str(path)]
    assert hold.extension is None or hold.extension.path == SHARED_OBJECT
    assert hold.extension is not None or not hold.exact
    assert ("it ran in the extension" in str(hold)) is hold.exact


class Raises:
    @property
    def __module__(self):
        raise ValueError("no module")

    def __call__(self):
        torchgil.held.spin(0.02)
        return "its result"


class NoClass(Raises):
    @property
    def __class__(self):
        raise ValueError("no class")


class NumberForModule(Raises):
    __module__ = 5


@pytest.mark.parametrize("kind", [Raises, NoClass, NumberForModule])
def test_an_audit_of_an_object_that_cannot_be_asked_has_its_result(kind):
    found = torchgil.audit(kind())
    assert (found.result, found.extension) == ("its result", None)


def test_an_audit_names_it_where_it_held_long():
    long = torchgil.audit(torchgil.held.spin, 0.05)
    assert long.extension.path == SHARED_OBJECT
    assert f"\nit ran {long.extension}" in str(long)
    assert torchgil.audit(torchgil.held.spin, 0).extension is None
    assert torchgil.audit(torchgil.released.spin, 0.05).extension is None


def hints(call):
    with torchgil.trace() as t:
        call()
    return " ".join(t.report().hints)


def test_the_hint_of_an_op_that_held_says_where_its_kernel_is_from():
    found = hints(lambda: torchgil.held.spin(0.02))
    assert "torchgil::spin held the GIL for up to" in found
    assert "its kernel is registered at " in found
    assert "library.cpp:" in found
    assert "py::call_guard<py::gil_scoped_release>()" in found
    assert "registered" not in hints(lambda: torchgil.released.spin(0.02))


def test_nothing_is_said_of_torchs_own_ops_and_of_what_is_none():
    assert of_op("aten::add") is None
    assert of_op("nosuch::op") is None
    assert of_op("a block of mine") is None
    assert of_op("a::block of mine") is None
    assert of_op("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad") is None


def test_a_kernel_in_python_is_called_that():
    with torch.library._scoped_library("torchgil_test_origin", "DEF") as library:
        library.define("slow(Tensor x) -> Tensor")
        library.impl("slow", lambda x: x + sum(range(10**6)), "CPU")
        assert "its kernel is Python, registered at " in of_op("torchgil_test_origin::slow")
