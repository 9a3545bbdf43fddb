"""_C.pyi says what the built module has: the same names, with the same parameters."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

from torchgil._build import C

STUB = ast.parse((Path(__file__).parent.parent / "torchgil" / "_C.pyi").read_text())
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


STUBBED = definitions(STUB.body)
FUNCTIONS = [name for name, node in STUBBED.items() if isinstance(node, ast.FunctionDef)]
CLASSES = [n for n, node in STUBBED.items() if isinstance(node, ast.ClassDef) and not n.startswith("_")]
POLICIES = [
    name
    for name, node in STUBBED.items()
    if isinstance(node, ast.AnnAssign) and node.annotation.id == POLICY_PROTOCOL
]


def test_the_stub_and_the_module_have_the_same_names():
    assert {name for name in STUBBED if not name.startswith("_")} == public(C)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    assert parameters(STUBBED[name]) == parameters(getattr(C, name))


@pytest.mark.parametrize("policy", POLICIES)
def test_policies(policy):
    stub, module = definitions(STUBBED[POLICY_PROTOCOL].body), getattr(C, policy)
    assert set(stub) == public(module)
    for name, node in stub.items():
        assert parameters(node) == parameters(getattr(module, name)), name


IN_PYTHON = {"Tensor": "Tensor", "number": "complex", "float": "float", "int": "int", "bool": "bool"}


def line_for(name):
    """An op's line in the stub, as its schema has it; None: it is no op."""
    op = getattr(torch.ops.torchgil, name, None)
    if op is None:
        return None
    schema, parts = op.default._schema, ["self"]
    for argument in schema.arguments:
        if argument.kwarg_only and "*" not in parts:
            parts.append("*")
        default = f" = {argument.default_value!r}" if argument.has_default_value() else ""
        parts.append(f"{argument.name}: {IN_PYTHON[str(argument.type)]}{default}")
    results = [IN_PYTHON[str(result.type)] for result in schema.returns]
    result = f"tuple[{', '.join(results)}]" if len(results) > 1 else "".join(results) or "None"
    return f"def {name}({', '.join(parts)}) -> {result}: ..."


@pytest.mark.parametrize("name", sorted(public(C.released)))
def test_an_op_is_typed_as_its_schema_is(name):
    """The line for a new op stands in this test's failure."""
    expected = line_for(name)
    if expected is None:
        assert name == "wait"
        return
    stub = definitions(STUBBED[POLICY_PROTOCOL].body)
    assert name in stub, f"torchgil/_C.pyi, {POLICY_PROTOCOL}, lacks:\n    {expected}"
    assert ast.unparse(stub[name]) == ast.unparse(ast.parse(expected))
    assert parameters(ast.parse(expected).body[0]) == parameters(getattr(C.released, name))


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    stub, built = definitions(STUBBED[name].body), getattr(C, name)
    own = {n for n in vars(built) if not n.startswith("_")}  # a base class has an entry of its own
    assert {n for n in stub if not n.startswith("_")} == own
