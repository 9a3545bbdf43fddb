"""The instruction list: small frames, values moved out at their last use, nothing computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.forward.comparing import export
from tests.forward.models import CASES, Case
from torchgil._torch_half import C
from torchgil.forward._instructions import plan
from torchgil.forward._operands import Constant, Default, Instruction, Region, Slot, Weight, walk


def slots(operands: Any) -> Iterator[Slot]:
    for operand in operands:
        if isinstance(operand, Slot):
            yield operand
        elif isinstance(operand, list):
            yield from slots(operand)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_every_value_is_written_before_it_is_read_and_moved_out_once(case: Case) -> None:
    _, program = export(case)
    planned = plan(program)
    live: set[int] = set()
    for step in walk(planned.code):
        for operand in slots(step.operands):
            assert operand.index in live, f"{step.name} reads an empty slot"
            if operand.last:
                live.remove(operand.index)
        for output in step.outputs:
            if output is not None:
                assert output not in live, f"{step.name} overwrites a value that is still needed"
                assert output < planned.num_slots
                live.add(output)
    for operand in slots(planned.outputs):
        assert operand.index in live
        if operand.last:
            live.remove(operand.index)
    assert not live, "a value is held although nobody reads it again"


def test_a_chain_needs_one_slot() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                x = x + 1
            return x

    planned = plan(torch.export.export(Chain(), (torch.ones(2),)))
    assert (planned.num_slots, planned.count) == (1, 20)


def test_operands_follow_the_schema_with_constants_weights_and_defaults() -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1)).eval(), (torch.ones(1, 3),))
    planned = plan(program)
    linear, softmax = planned.code
    assert isinstance(linear, Instruction)
    assert isinstance(softmax, Instruction)
    assert (linear.op, linear.overload, linear.operands[1:]) == ("aten::linear", "", (Weight(0), Weight(1)))
    assert softmax.operands == (Slot(0, last=True), Constant(-1), Default())
    assert planned.weights == ("0.weight", "0.bias")
    assert planned.ops == (("aten::linear", ""), ("aten::softmax", "int"))


def test_results_of_a_split_go_straight_to_slots() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            _, b, c = x.split(1)
            return c, b

    planned = plan(torch.export.export(Halves(), (torch.ones(3),)))
    (split,) = planned.code
    assert isinstance(split, Instruction)
    assert split.unpack
    assert split.outputs[0] is None
    assert planned.outputs == (Slot(split.outputs[2], last=True), Slot(split.outputs[1], last=True))  # type: ignore[arg-type]


def test_no_grad_and_autocast_become_regions() -> None:
    class Modes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = x * 2
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return y @ x

    first, second = plan(torch.export.export(Modes(), (torch.ones(2, 2),))).code
    assert isinstance(first, Region)
    assert isinstance(second, Region)
    assert first.mode == ("grad", False)
    assert second.mode == ("autocast", "cpu", torch.bfloat16, True)


def test_tied_weights_are_one_tensor() -> None:
    case = next(c for c in CASES if c.name == "decoder")
    model, program = export(case)
    held = [program.state_dict[name] for name in plan(program).weights if name in program.state_dict]
    assert sum(w is model.embed.weight for w in held) >= 1  # type: ignore[union-attr]
    assert len({id(w) for w in held}) == len({id(p) for p in model.parameters()})


def step(op: str = "aten::neg", overload: str | None = "", **changed: Any) -> dict[str, Any]:
    """One instruction as C++ takes it: 0 -> 0."""
    given = {"operands": [("input", 0)], "outputs": (0,), "unpack": False, "unsafe_writes": ()}
    return {"name": "node", "where": "", "op": op, "overload": overload, **given, **changed}


def graph_of(code: list[Any], outputs: list[Any]) -> Any:
    graph = C.Graph()
    graph.set_code(code)
    graph.set_outputs(outputs)
    return graph


@pytest.mark.parametrize(
    ("code", "outputs", "error"),
    [
        ([step(operands=[("slot", 0)])], [], "slot 0 is read, and has no value"),
        ([step(operands=[("slot", 7)])], [], "slot 7 is read, and has no value"),
        ([step(), step(operands=[("last", 0)], outputs=(1,))], [("slot", 0)], "slot 0 is read"),
        ([step()], [("last", 0), ("last", 0)], "slot 0 is read, and has no value"),
        ([step(operands=[("weight", 3)])], [], "no weight 3"),
        ([step(operands=[("weight", -1)])], [], "no weight -1"),
        ([step(operands=[("weight", 2**40)])], [], "no weight 1099511627776"),
        (
            [step("aten::cat", operands=[("list", [("weight", 10**6)]), ("constant", 0)])],
            [],
            "no weight 1000000",
        ),
        ([step("add", None, operands=[("list", [("weight", 10**6)])])], [], "no weight 1000000"),
        ([step()], [("list", [("weight", 10**6)])], "no weight 1000000"),
        ([step()], [("weight", 7)], "no weight 7"),
        ([step(operands=[("slot", -1)])], [], "no slot -1"),
        ([step(operands=[("input", -1)])], [], "no input -1"),
        ([step(operands=[("input", 2**32)])], [], "no input 4294967296"),
        ([step(outputs=(-2,))], [], "no slot -2"),
        ([step(outputs=(2**31,))], [], "no slot 2147483648"),
        ([step(outputs=(2**31 - 1,))], [], "no slot 2147483647"),
        ([step(operands=[])], [], "aten::neg takes 1 arguments, got 0"),
        ([step(operands=[("input", 0)] * 2)], [], "aten::neg takes 1 arguments, got 2"),
        ([step(outputs=(None, 0))], [], "node has no result 1"),
        ([step(unsafe_writes=(1,))], [], "node writes to argument 1, which it has not"),
        ([{"grad": False, "body": [step(operands=[("slot", 0)])]}], [], "slot 0 is read, and has no value"),
        ([step("add", None, operands=[("list", [("slot", 2)])])], [], "slot 2 is read, and has no value"),
        ([step(operands=[("default", None)])], [], "argument 'self' is missing"),
        ([step("add", None, operands=[("default", None)])], [], "no argument has a default here"),
    ],
)
def test_code_that_could_not_run_is_refused(code: Any, outputs: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        graph_of(code, outputs)


def test_an_int_of_more_than_64_bits_is_named() -> None:
    for operand in (("constant", 2**63), ("list", [("constant", 2**63)]), ("weight", 2**70)):
        with pytest.raises(OverflowError, match=r"the int \d+ does not fit into 64 bits"):
            graph_of([step("add", None, operands=[operand])], [])


def test_nothing_runs_of_what_is_refused() -> None:
    graph = graph_of([step()], [("last", 0)])
    with pytest.raises(ValueError, match="no weight 3"):
        graph.set_code([step(operands=[("weight", 3)])])
    assert graph.run([]) == []
    graph.set_code([step()])
    with pytest.raises(ValueError, match="slot 9 is read"):
        graph.set_outputs([("last", 0), ("slot", 9)])
    graph.set_outputs([("last", 0)])
    graph.set_outputs([("last", 0)])


def test_an_input_of_any_number_is_counted() -> None:
    with pytest.raises(ValueError, match="too few inputs"):
        graph_of([step(operands=[("input", 2**32 - 1)])], [("last", 0)]).run([])


def test_too_few_inputs_and_operands_are_errors_of_the_call() -> None:
    with pytest.raises(ValueError, match="too few inputs"):
        graph_of([step()], [("last", 0)]).run([])
    with pytest.raises(RuntimeError, match="invalid index"):
        graph_of([step("add", None, operands=[("constant", 1)])], [("last", 0)]).run([])
