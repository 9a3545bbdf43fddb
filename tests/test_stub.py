"""The stubs say what the built modules have: the same names, with the same parameters."""

import ast
import inspect

import pytest

from tests.support import stub
from torchgil._gil_half import C as GIL
from torchgil._torch_half import C

GIL_STUB = stub.PATH.with_name("_gil.pyi")
POLICY_PROTOCOL = "_Policy"


def definitions(body):
    """name -> node, of functions, classes and annotated names."""
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = node
    return found


def public(module):
    return {name for name in dir(module) if not name.startswith("_")}


def parameters(function):
    """(name, is keyword-only, default's text) of each parameter but self."""
    if isinstance(function, ast.FunctionDef):
        a = function.args
        plain = [*a.posonlyargs, *a.args]
        defaults = [None] * (len(plain) - len(a.defaults)) + list(a.defaults)
        rows = [(p.arg, False, d) for p, d in zip(plain, defaults, strict=True)]
        rows += [(p.arg, True, d) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
        rows = [(n, k, None if d is None else ast.literal_eval(d)) for n, k, d in rows]
    elif getattr(function, "__text_signature__", None) is None:
        # pybind11's own first line, which is Python but for some defaults.
        line = function.__doc__.splitlines()[0]
        return parameters(ast.parse(f"def {line}: ...").body[0])
    else:
        rows = [
            (p.name, p.kind is p.KEYWORD_ONLY, None if p.default is p.empty else p.default)
            for p in inspect.signature(function).parameters.values()
        ]
    return [row for row in rows if row[0] != "self"]


STUBBED = definitions(ast.parse(stub.PATH.read_text()).body)
HALVES = [(C, STUBBED), (GIL, definitions(ast.parse(GIL_STUB.read_text()).body))]
FUNCTIONS = [
    (half, name, node)
    for half, stubbed in HALVES
    for name, node in stubbed.items()
    if isinstance(node, ast.FunctionDef)
]
CLASSES = [
    (half, name, node)
    for half, stubbed in HALVES
    for name, node in stubbed.items()
    if isinstance(node, ast.ClassDef) and not name.startswith("_")
]
POLICIES = [
    name
    for name, node in STUBBED.items()
    if isinstance(node, ast.AnnAssign) and node.annotation.id == POLICY_PROTOCOL
]


@pytest.mark.parametrize(("half", "stubbed"), HALVES, ids=["_torch", "_gil"])
def test_the_stub_and_the_module_have_the_same_names(half, stubbed):
    assert {name for name in stubbed if not name.startswith("_")} == public(half)


@pytest.mark.parametrize(("half", "name", "node"), FUNCTIONS)
def test_functions(half, name, node):
    assert parameters(node) == parameters(getattr(half, name))


@pytest.mark.parametrize("policy", POLICIES)
def test_policies(policy):
    stubbed, module = definitions(STUBBED[POLICY_PROTOCOL].body), getattr(C, policy)
    assert set(stubbed) == public(module)
    for name, node in stubbed.items():
        assert parameters(node) == parameters(getattr(module, name)), name


def test_the_ops_are_typed_as_their_schemas_are():
    assert stub.PATH.read_text() == stub.written(), "python -m tests.support.stub writes the ops' lines anew"


@pytest.mark.parametrize("name", stub.op_names())
def test_an_op_takes_what_its_schema_takes(name):
    line = ast.parse(stub.line_for(name).strip()).body[0]
    assert parameters(line) == parameters(getattr(C.released, name))


def test_a_new_op_gets_its_line(tmp_path, monkeypatch):
    """The positive control: a stub that lacks an op, and has another's line wrong."""
    torn = stub.PATH.read_text().replace(stub.line_for("matmul"), "")
    torn = torn.replace("iou_threshold: float", "iou_threshold: int")
    monkeypatch.setattr(stub, "PATH", tmp_path / "_torch.pyi")
    stub.PATH.write_text(torn)
    assert stub.written() != torn
    stub.PATH.write_text(stub.written())
    assert stub.op_names()[-1] == "matmul"
    assert "iou_threshold: float" in stub.PATH.read_text()


@pytest.mark.parametrize(("half", "name", "node"), CLASSES)
def test_classes(half, name, node):
    stubbed, built = definitions(node.body), getattr(half, name)
    own = {n for n in vars(built) if not n.startswith("_")}  # a base class has an entry of its own
    assert {n for n in stubbed if not n.startswith("_")} == own
