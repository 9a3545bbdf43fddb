"""The docstrings are the API's reference: what each public name takes and gives, with an example.

Doctest runs the examples of Python's modules with the rest of the suite, and those of the extension here.
"""

from __future__ import annotations

import doctest
import inspect
import re

import pytest

import torchgil

POLICIES = ("released", "held", "adaptive")
NAMES = {name: getattr(torchgil, name) for name in torchgil.__all__ if name != "__version__"}
MODULES = {name for name, value in NAMES.items() if inspect.ismodule(value)}
ERRORS = {name for name, value in NAMES.items() if isinstance(value, type) and issubclass(value, Exception)}
OPS = {
    f"{policy}.{name}": op
    for policy in POLICIES
    for name, op in vars(NAMES[policy]).items()
    if callable(op) and not name.startswith("_")
}
REFERENCE = {
    **{name: value for name, value in NAMES.items() if name not in MODULES},
    "metrics.export": torchgil.metrics.export,
    **OPS,
}


def functions():
    """All that is called: functions, classes, and methods that are ours."""
    for name, value in REFERENCE.items():
        if name in ERRORS or value is torchgil.Latch:  # which takes nothing, and has no signature to read
            continue
        yield name, value
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if not method.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{method}", function


FUNCTIONS = dict(functions())


@pytest.mark.parametrize("name", sorted(MODULES | ERRORS))
def test_every_module_and_every_error_says_what_it_is_for(name):
    assert re.match(r"[A-Z].{30,}\.", inspect.getdoc(NAMES[name]), re.DOTALL)


@pytest.mark.parametrize("name", sorted(REFERENCE.keys() - ERRORS))
def test_every_name_has_an_example(name):
    assert ">>> " in inspect.getdoc(REFERENCE[name])


@pytest.mark.parametrize("name", [*(name for name in OPS if name.startswith("released.")), "Latch"])
def test_the_examples_of_the_extension_print_what_they_say(name):
    example = doctest.DocTestParser().get_doctest(REFERENCE[name].__doc__, {}, name, None, None)
    printed = []
    doctest.DocTestRunner().run(example, out=printed.append)
    assert not printed, "".join(printed)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_and_every_result_is_described(name):
    text = inspect.getdoc(FUNCTIONS[name])
    signature = inspect.signature(FUNCTIONS[name])
    described = "".join(re.split(r"^(?:Args|Attributes):$", text, flags=re.MULTILINE)[1:])
    undescribed = [
        parameter
        for parameter in signature.parameters
        if parameter not in ("self", "args", "kwargs")
        and not re.search(rf"^\s+(?:\w+, )*{parameter}(?:, \w+)*: ", described, re.MULTILINE)
    ]
    assert not undescribed
    gives = signature.return_annotation not in ("None", inspect.Signature.empty)
    if inspect.isfunction(FUNCTIONS[name]) and gives and "\n" in text:
        assert re.search(r"^Returns:$", text, re.MULTILINE)
