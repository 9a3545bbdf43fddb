"""From an exported graph to a list of instructions for the C++ program.

Pure: an :class:`torch.export.ExportedProgram` in, dataclasses out. Nothing is run here and nothing compiled.
What the program cannot run safely from several threads is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from torchgil.forward._assignments import assigned_buffers
from torchgil.forward._builtin_functions import BUILTINS
from torchgil.forward._mutation import Roots, check_call
from torchgil.forward._operands import (
    Constant,
    Default,
    Input,
    Instruction,
    Operand,
    Plan,
    Region,
    Slot,
    State,
    Weight,
    walk,
)
from torchgil.forward._slots import Slots
from torchgil.forward._state import described, with_aliases
from torchgil.forward._unsupported import refuse, source_line, well_formed
from torchgil.forward._weights import weight_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

__all__ = ["plan"]


def plan(program: ExportedProgram, state: Sequence[str] | None = None) -> Plan:
    """Turn an exported graph into instructions.

    Args:
        program: What :func:`torch.export.export` returned.
        state: The names of the tensors that each session has of its own, where they are known; else they are
            those that the graph writes to, and what shares memory with one.

    Returns:
        The instructions, with every value in a slot of one small frame that is reused after its last use.

    Raises:
        NotImplementedError: The graph holds something that cannot be run from several threads at once, or
            without Python; the message names the node, its source line and what to do.
        ValueError: A node is not as torch.export writes it; the message names it.
    """
    if state is None:
        lowering = _Lowering(program, ())
        lowering.run()
        written = lowering.roots.written
        assigned = lowering.assigned.values()
        state = (
            with_aliases(program, written, lowering.weights, lowering.parameters, assigned) if written else ()
        )
    lowering = _Lowering(program, state)
    code, outputs, new_values = lowering.run()
    if unknown := lowering.roots.written - set(state):  # of a saved forward that was changed by hand
        raise ValueError(f"nogil: the program writes to {', '.join(sorted(unknown))}, not only to its state")
    slots = Slots(lowering.num_values)
    slots.count_uses(code, [*outputs, *new_values.values()])
    placed = slots.place(code)
    return Plan(
        code=placed,
        outputs=tuple(slots.read(o) for o in outputs),
        new_state=tuple((state.index(name), slots.read(value)) for name, value in new_values.items()),
        num_slots=slots.size,
        weights=tuple(lowering.weights),
        state=tuple(state),
        ops=tuple(sorted(lowering.ops)),
        count=sum(1 for _ in walk(placed)),
    )


class _Lowering:
    """Walks the nodes; values are numbered once each (slots come after, in `Slots`)."""

    def __init__(self, program: ExportedProgram, state: Sequence[str]) -> None:
        self.program = program
        self.state = {name: State(index) for index, name in enumerate(state)}
        self.weights: list[str] = []
        self.parameters: list[str] = []
        self.ops: set[tuple[str, str]] = set()
        self.num_values = 0
        self.roots = Roots()
        self.assigned = assigned_buffers(program)

    def run(self) -> tuple[list[Instruction | Region], list[Operand], dict[str, Operand]]:
        """The instructions, the results, and what a functional graph writes back to its buffers."""
        signature = self.program.graph_signature
        written_back: set[str] = set()
        for spec in signature.output_specs:
            if spec.kind is OutputKind.BUFFER_MUTATION:
                written_back.add(str(spec.target))
            elif spec.kind is not OutputKind.USER_OUTPUT:
                refuse(
                    f"its output '{spec.arg.name}' is written back to '{spec.target}' "
                    f"({spec.kind.name.lower()})",
                    "return the new value instead, or keep the state in buffers",
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
                name = str(spec.target)
                if not node.users and name not in written_back:  # export lists all that the model has
                    continue
                env[node] = self._held(name)
                is_parameter = spec.kind is InputKind.PARAMETER
                if is_parameter:
                    self.parameters.append(name)
                self.roots.add(
                    env[node],
                    f"the {spec.kind.name.lower().replace('_', ' ')} '{name}'",
                    state=None if is_parameter else name,
                )
            else:
                refuse(
                    f"its input '{node.name}' is a {spec.kind.name.lower().replace('_', ' ')}",
                    "export a model of tensors and numbers",
                )
        code: list[Instruction | Region] = []
        outputs = self._graph(self.program.graph_module, env, code)
        results: list[Operand] = []
        new_values: dict[str, Operand] = {}
        nodes = self.program.graph.output_node().args[0]
        for spec, output, node in zip(signature.output_specs, outputs, nodes, strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                new_values[str(spec.target)] = output
                self._check_like(str(spec.target), node)
            else:
                results.append(output)
        for node, name in self.assigned.items():
            with well_formed(node):
                new_values[name] = self._operand(node.args[1], env)
            self._check_like(name, node.args[1])
        self.roots.written.update(new_values)
        return code, results, new_values

    def _check_like(self, name: str, node: Any) -> None:
        """Refuse the new value of a buffer that has another dtype or shape: to copy it would convert it."""
        old, new = weight_of(self.program, name), getattr(node, "meta", {}).get("val")
        if isinstance(new, torch.Tensor) and (
            new.dtype != old.dtype
            or new.dim() != old.dim()
            or any(isinstance(n, int) and n != o for n, o in zip(new.shape, old.shape, strict=True))
        ):
            refuse(
                f"it gives the buffer {name!r} another dtype or shape: {described(new)} for {described(old)}",
                "keep both as they are",
                node,
            )

    def _held(self, name: str) -> Weight | State:
        """Where a parameter, buffer or lifted constant comes from."""
        if name in self.state:
            return self.state[name]
        self.weights.append(name)
        return Weight(len(self.weights) - 1)

    def _graph(
        self, module: GraphModule, env: dict[Node, Any], code: list[Instruction | Region]
    ) -> list[Operand]:
        for node in module.graph.nodes:
            if node in self.assigned:
                continue
            if node.op == "call_function":
                with well_formed(node):
                    self._call(module, node, env, code)
            elif node.op == "output":
                with well_formed(node):
                    return [self._operand(o, env) for o in node.args[0]]
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
            self.roots.pass_on(list(operands), env[node])  # an item of a list of views
            code.append(Instruction(node.name, source_line(node), BUILTINS[target], None, operands, (out,)))
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
                source_line(node),
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
        env[node] = tuple(self._graph(body, inner_env, inside))
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
        return value if isinstance(value, (Slot, Input, Weight, State)) else Constant(value)

    def _value(self) -> int:
        self.num_values += 1
        return self.num_values - 1

    def _results(self, node: Node, length: int) -> tuple[Slot, ...]:
        return tuple(Slot(self._value()) for _ in range(length))


def _is_getitem(target: Any) -> bool:
    return BUILTINS.get(target) == "getitem" if callable(target) else False


def _index(getitem: Node) -> int:
    index = getitem.args[1]
    assert isinstance(index, int)
    return index


def _only_items(node: Node) -> bool:
    """Whether all that is used of a list are items that it had when it was exported."""
    length = len(node.meta.get("val") or ())
    return all(_is_getitem(user.target) and 0 <= _index(user) < length for user in node.users)


def _any(value: Any) -> Any:
    return value  # what torch.fx types as one of seventeen kinds
