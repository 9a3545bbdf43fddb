"""Writes the ops' lines of torchgil/_torch.pyi from the built schemas: python -m tests.support.stub"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from torchgil._torch_half import C

PATH = Path(__file__).parents[2] / "torchgil" / "_torch.pyi"
# In the protocol of the policies: what is from the schemas. What follows it (wait) is no op.
OPS = re.compile(r"(?<=under one GIL policy\.\"\"\"\n\n)(?:    def \w+\(self.*\n)+?(?=    def wait\()")
IN_PYTHON = {"Tensor": "Tensor", "number": "complex", "float": "float", "int": "int", "bool": "bool"}


def op_names() -> list[str]:
    """The ops that have policies, in the order of the stub, new ones last."""
    names = {n for n in dir(C.released) if n[0] != "_" and hasattr(torch.ops.torchgil, n)}
    found = OPS.search(PATH.read_text())
    order = re.findall(r"def (\w+)", found.group()) if found else []
    return [name for name in order if name in names] + sorted(names - set(order))


def line_for(name: str) -> str:
    """An op's line in the stub, as its schema has it."""
    schema = getattr(torch.ops.torchgil, name).default._schema
    parts = ["self"]
    for argument in schema.arguments:
        if argument.kwarg_only and "*" not in parts:
            parts.append("*")
        default = f" = {argument.default_value!r}" if argument.has_default_value() else ""
        parts.append(f"{argument.name}: {IN_PYTHON[str(argument.type)]}{default}")
    results = [IN_PYTHON[str(result.type)] for result in schema.returns]
    result = f"tuple[{', '.join(results)}]" if len(results) > 1 else "".join(results) or "None"
    return f"    def {name}({', '.join(parts)}) -> {result}: ...\n"


def written() -> str:
    """The whole stub, with the ops' lines as they should be."""
    lines = "".join(map(line_for, op_names()))
    text, count = OPS.subn(lambda _: lines, PATH.read_text())
    if count != 1:
        raise SystemExit(f"{PATH}: the ops' lines were not found before wait()")
    return text


if __name__ == "__main__":
    PATH.write_text(written())
