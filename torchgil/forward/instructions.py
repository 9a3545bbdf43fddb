"""From an exported graph to a list of instructions for the C++ program.

Pure: an :class:`torch.export.ExportedProgram` in, dataclasses out. Nothing is run here and nothing is
    compiled; what
the program cannot run safely from several threads is refused here, by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.export.graph_signature import InputKind, OutputKind

from torchgil.forward.builtins import BUILTINS
from torchgil.forward.mutation import Roots, check_call
from torchgil.forward.unsupported import refuse

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

__all__ = ["Constant", "Default", "Input", "Instruction", "Plan", "Region", "Slot", "Weight", "plan"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A value of the frame. `last` marks its last use: the program moves it out instead of copying it."""

    index: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """A leaf of the caller's arguments, by its place among the flattened ones."""

    index: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter, buffer or lifted constant, by its place in :attr:`Plan.weights`."""

    index: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A Python value the graph holds; converted once, by the type the operator's schema gives it."""

    value: Any


@dataclass(frozen=True, slots=True)
class Default:
    """The schema's own default."""


Operand: TypeAlias = "Slot | Input | Weight | Constant | Default | list[Operand]"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One operator of the dispatcher, or one builtin over sizes and numbers.

    Attributes:
        name: The graph node's name, for errors.
        where: The model's source line that made the node; empty where export kept none.
        op: The operator as ``namespace::name``, or the builtin's name.
        overload: The operator's overload; `None` for a builtin.
        operands: One for each argument of the schema, in its order.
        outputs: The slot of each result; `None` where nobody uses it.
        unpack: The single result is a list whose elements go to `outputs`.
        unsafe_writes: Operands written to whose storage is checked against inputs and weights when it runs.
    """

    name: str
    where: str
    op: str
    overload: str | None
    operands: tuple[Operand, ...]
    outputs: tuple[int | None, ...]
    unpack: bool = False
    unsafe_writes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Region:
    """Instructions that run under another grad mode, or under autocast, and put the mode back after.

    Attributes:
        mode: ``("grad", enabled)`` or ``("autocast", device_type, dtype, enabled)``.
        body: What runs inside.
    """

    mode: tuple[Any, ...]
    body: tuple[Instruction | Region, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the program needs to run a graph.

    Attributes:
        code: The instructions in order.
        num_slots: The size of one call's frame.
        weights: The names of parameters, buffers and lifted constants, in the order :class:`Weight` counts.
        outputs: The flattened outputs in order.
        ops: The operators used, as ``(name, overload)``, each once.
        count: How many instructions there are, those inside regions included.
    """

    code: tuple[Instruction | Region, ...]
    num_slots: int
    weights: tuple[str, ...]
    outputs: tuple[Operand, ...]
    ops: tuple[tuple[str, str], ...]
    count: int


def plan(program: ExportedProgram) -> Plan:
    """Turn an exported graph into instructions.

    Args:
        program: What :func:`torch.export.export` returned.

    Returns:
        The instructions, with every value in a slot of one small frame that is reused after its last use.

    Raises:
        NotImplementedError: The graph holds something that cannot be run from several threads at once, or
            without Python; the message names the node, its source line and what to do.
    """
    lowering = _Lowering(program)
    code, outputs = lowering.run()
    slots = _Slots(lowering.num_values)
    slots.count_uses(code, outputs)
    placed = slots.place(code)
    return Plan(
        code=placed,
        outputs=tuple(slots.read(o) for o in outputs),
        num_slots=slots.size,
        weights=tuple(lowering.weights),
        ops=tuple(sorted(lowering.ops)),
        count=sum(1 for _ in _walk(placed)),
    )


def _walk(code: Iterable[Instruction | Region]) -> Iterator[Instruction]:
    for step in code:
        if isinstance(step, Region):
            yield from _walk(step.body)
        else:
            yield step


class _Lowering:
    """Walks the nodes; values are numbered once each (slots come after, in `_Slots`)."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.weights: list[str] = []
        self.ops: set[tuple[str, str]] = set()
        self.num_values = 0
        self.roots = Roots()

    def run(self) -> tuple[list[Instruction | Region], list[Operand]]:
        signature = self.program.graph_signature
        for spec in signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                refuse(
                    f"its output '{spec.arg.name}' is written back to '{spec.target}' "
                    f"({spec.kind.name.lower()})",
                    "return the new value instead, and keep the state outside the model",
                )
        env: dict[Node, Any] = {}
        specs = iter(signature.input_specs)
        users = 0
        for node in self.program.graph.find_nodes(op="placeholder"):
            spec = next(specs)
            if spec.kind is InputKind.USER_INPUT:
                env[node] = Input(users)
                self.roots.add(env[node], f"the input '{node.name}'")
                users += 1
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                env[node] = Weight(len(self.weights))
                self.weights.append(str(spec.target))
                self.roots.add(env[node], f"the {spec.kind.name.lower().replace('_', ' ')} '{spec.target}'")
            else:
                refuse(
                    f"its input '{node.name}' is a {spec.kind.name.lower().replace('_', ' ')}",
                    "export a model of tensors and numbers",
                )
        code: list[Instruction | Region] = []
        outputs = self._graph(self.program.graph_module, env, code)
        return code, [self._operand(o, env) for o in outputs]

    def _graph(
        self, module: GraphModule, env: dict[Node, Any], code: list[Instruction | Region]
    ) -> list[Any]:
        for node in module.graph.nodes:
            if node.op == "call_function":
                self._call(module, node, env, code)
            elif node.op == "output":
                return list(node.args[0])
            elif node.op not in ("placeholder", "get_attr"):
                refuse(f"a graph node of kind {node.op}", "export the model with torch.export.export", node)
        raise AssertionError("an exported graph ends with its output")

    def _call(
        self, module: GraphModule, node: Node, env: dict[Node, Any], code: list[Instruction | Region]
    ) -> None:
        target = node.target
        if _is_getitem(target) and isinstance(node.args[0], torch.fx.Node):
            whole = env[node.args[0]]
            if isinstance(whole, tuple):  # a call with several results, or a region: known here
                env[node] = whole[_index(node)]
                return
        if isinstance(target, torch._ops.HigherOrderOperator):
            self._region(module, node, env, code)
        elif isinstance(target, torch._ops.OpOverload) and target not in BUILTINS:
            self._operator(node, target, env, code)
        elif target in BUILTINS:
            operands = tuple(self._operand(a, env) for a in node.args)
            operands += tuple(self._operand(v, env) for v in node.kwargs.values())
            out = self._value()
            env[node] = Slot(out)
            code.append(Instruction(node.name, _where(node), BUILTINS[target], None, operands, (out,)))
        else:
            refuse(
                f"it calls the Python function {getattr(target, '__name__', target)}",
                "run exported_program.run_decompositions({}) and pass its result, or write it with torch ops",
                node,
            )

    def _operator(self, node: Node, op: Any, env: dict[Node, Any], code: list[Instruction | Region]) -> None:
        schema = op._schema
        given: dict[str, Any] = dict(node.kwargs)
        given.update(zip((a.name for a in schema.arguments), node.args, strict=False))
        operands = tuple(
            self._operand(given[a.name], env) if a.name in given else Default() for a in schema.arguments
        )
        unsafe_writes = check_call(node, op, operands, self.roots)
        unpack = False
        if (
            len(schema.returns) == 1
            and isinstance(schema.returns[0].type, torch.ListType)
            and _only_items(node)
        ):
            length = 1 + max((_index(user) for user in node.users), default=-1)
            unpack, outputs = True, self._results(node, length)
            env[node] = outputs
        elif len(schema.returns) == 1:
            env[node] = Slot(self._value())
            outputs = (env[node],)
        else:
            env[node] = outputs = self._results(node, len(schema.returns))
        self.roots.derive(op, operands, outputs, unpack=unpack)
        self.ops.add((schema.name, schema.overload_name))
        code.append(
            Instruction(
                node.name,
                _where(node),
                schema.name,
                schema.overload_name,
                operands,
                tuple(o.index for o in outputs),
                unpack,
                unsafe_writes,
            )
        )

    def _region(
        self, module: GraphModule, node: Node, env: dict[Node, Any], code: list[Instruction | Region]
    ) -> None:
        name = node.target.name()  # type: ignore[union-attr]
        if name == "wrap_with_set_grad_enabled":
            mode: tuple[Any, ...] = ("grad", node.args[0])
            body_node, *inner = node.args[1:]
        elif name == "wrap_with_autocast":
            # torch.autocast knows each device's default dtype, and which dtypes turn it off
            device_type, dtype, enabled = map(_any, node.args[:3])
            context = torch.autocast(device_type, dtype, enabled, cache_enabled=False)
            mode = ("autocast", context.device, context.fast_dtype, context._enabled)
            body_node, *inner = node.args[4:]
        else:
            refuse(
                f"the higher-order op {name}",
                "move the branch or loop into Python, around two exported models, or write it with "
                "torch.where",
                node,
            )
        body: GraphModule = getattr(module, _any(body_node).target)
        inner_env: dict[Node, Any] = {
            placeholder: self._operand(value, env)
            for placeholder, value in zip(body.graph.find_nodes(op="placeholder"), inner, strict=True)
        }
        inside: list[Instruction | Region] = []
        outputs = self._graph(body, inner_env, inside)
        env[node] = tuple(self._operand(o, inner_env) for o in outputs)
        code.append(Region(mode, tuple(inside)))

    def _operand(self, value: Any, env: dict[Node, Any]) -> Any:
        if isinstance(value, torch.fx.Node):
            if isinstance(env[value], tuple):
                refuse("several results used as one value", "take them apart in the model", value)
            return env[value]
        if isinstance(value, (list, tuple)):
            if any(isinstance(v, torch.fx.Node) for v in value):
                return [self._operand(v, env) for v in value]
            return Constant(list(value))
        return value if isinstance(value, (Slot, Input, Weight)) else Constant(value)

    def _value(self) -> int:
        self.num_values += 1
        return self.num_values - 1

    def _results(self, node: Node, length: int) -> tuple[Slot, ...]:
        return tuple(Slot(self._value()) for _ in range(length))


class _Slots:
    """Gives values slots, and takes them back after their last use: narrow graphs have small frames."""

    def __init__(self, num_values: int) -> None:
        self.uses = [0] * num_values
        self.slot_of: dict[int, int] = {}
        self.free: list[int] = []
        self.size = 0

    def count_uses(self, code: Iterable[Instruction | Region], outputs: list[Operand]) -> None:
        for step in _walk(code):
            self._count(list(step.operands))
        self._count(outputs)

    def _count(self, operands: list[Operand]) -> None:
        for operand in operands:
            if isinstance(operand, Slot):
                self.uses[operand.index] += 1
            elif isinstance(operand, list):
                self._count(operand)

    def place(self, code: Iterable[Instruction | Region]) -> tuple[Instruction | Region, ...]:
        placed: list[Instruction | Region] = []
        for step in code:
            if isinstance(step, Region):
                placed.append(Region(step.mode, self.place(step.body)))
                continue
            # operands first: a slot that ends here may take one of this instruction's results
            operands = tuple(self.read(o) for o in step.operands)
            outputs = tuple(self._write(o) for o in step.outputs)
            placed.append(dataclasses.replace(step, operands=operands, outputs=outputs))
        return tuple(placed)

    def read(self, operand: Operand) -> Operand:
        if isinstance(operand, list):
            return [self.read(o) for o in operand]
        if not isinstance(operand, Slot):
            return operand
        self.uses[operand.index] -= 1
        slot = self.slot_of[operand.index]
        if self.uses[operand.index]:
            return Slot(slot)
        self.free.append(slot)
        return Slot(slot, last=True)

    def _write(self, value: int | None) -> int | None:
        if value is None or not self.uses[value]:
            return None
        if not self.free:
            self.free.append(self.size)
            self.size += 1
        self.slot_of[value] = self.free.pop()
        return self.slot_of[value]


def _is_getitem(target: Any) -> bool:
    return BUILTINS.get(target) == "getitem" if callable(target) else False


def _index(getitem: Node) -> int:
    index = getitem.args[1]
    assert isinstance(index, int)
    return index


def _only_items(node: Node) -> bool:
    return all(_is_getitem(user.target) and _index(user) >= 0 for user in node.users)


def _any(value: Any) -> Any:
    return value  # what torch.fx types as one of seventeen kinds


def _where(node: Node) -> str:
    from torchgil.forward.unsupported import source_line

    return source_line(node)
