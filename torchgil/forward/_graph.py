"""Hands plans to the C++ side: instructions to a program, checks to whatever runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchgil._torch_half import C
from torchgil.forward._inputs import InputPlan
from torchgil.forward._operands import Constant, Default, Input, Plan, Region, Slot, State, Weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torchgil.forward._operands import Instruction, Operand
    from torchgil.forward._state import Layout

__all__ = ["add_checks", "build", "encode"]


def build(plan: Plan, inputs: InputPlan, weights: Sequence[torch.Tensor], state: Layout) -> Any:
    """The program, ready to run and never changed again.

    Args:
        plan: The instructions.
        inputs: What the arguments must be.
        weights: The tensors of `plan.weights`, in order. Shared, not copied.
        state: The tensors of `plan.state`, in order.
    """
    graph = C.Graph()
    add_checks(graph, inputs)
    for name, weight in zip(plan.weights, weights, strict=True):
        graph.add_weight(name, weight)
    for block in state.blocks:
        graph.add_block(block)
    for member in state.members:
        graph.add_state(*member)
    graph.set_code(encode(plan.code))
    results = [output for output in plan.outputs if not isinstance(output, Constant)]
    graph.set_outputs([_encode(output) for output in (*results, *(value for _, value in plan.new_state))])
    graph.set_new_state([place for place, _ in plan.new_state])
    return graph


def add_checks(arguments: Any, inputs: InputPlan) -> None:
    """Give a `Graph` or `Package` of the extension the checks of its arguments."""
    dimensions = {
        key: arguments.add_dimension(d.name, -(2**63) if d.low is None else d.low, d.high)
        for key, d in inputs.dimensions.items()
    }
    for leaf in inputs.leaves:
        if leaf.dtype is not None:
            sizes = [size if isinstance(size, int) else -1 - dimensions[size] for size in leaf.sizes]
            arguments.add_tensor(leaf.name, leaf.dtype, leaf.device, leaf.layout, sizes)
        elif leaf.dimension is not None:
            arguments.add_int(leaf.name, dimensions[leaf.dimension])
        else:
            arguments.add_value(leaf.name, leaf.value)
    arguments.add_guards(encode(inputs.guards))


def encode(code: Iterable[Instruction | Region]) -> list[dict[str, Any]]:
    """Instructions as `csrc/torch/forward/decode.cpp` reads them."""
    encoded: list[dict[str, Any]] = []
    for step in code:
        if isinstance(step, Region):
            kind, *mode = step.mode
            encoded.append({kind: mode[0] if kind == "grad" else tuple(mode), "body": encode(step.body)})
        else:
            encoded.append(
                {
                    "name": step.name,
                    "where": step.where,
                    "op": step.op,
                    "overload": step.overload,
                    "operands": [_encode(operand) for operand in step.operands],
                    "outputs": step.outputs,
                    "unpack": step.unpack,
                    "unsafe_writes": step.unsafe_writes,
                }
            )
    return encoded


def _encode(operand: Operand) -> tuple[str, Any]:
    match operand:
        case Slot(index, last):
            return ("last" if last else "slot", index)
        case Input(index):
            return ("input", index)
        case Weight(index):
            return ("weight", index)
        case State(index):
            return ("state", index)
        case Constant(value):
            return ("constant", value)
        case Default():
            return ("default", None)
        case _:
            return ("list", [_encode(o) for o in operand])
