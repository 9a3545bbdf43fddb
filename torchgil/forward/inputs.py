"""What an exported program wants of its arguments, leaf by leaf."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch.export.graph_signature import InputKind

from torchgil.forward.guards import Guards

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchgil.forward.operands import Instruction

__all__ = ["Dimension", "InputPlan", "Leaf", "plan_inputs"]


@dataclass(frozen=True, slots=True)
class Dimension:
    """A size that may differ from call to call.

    Attributes:
        name: The name of its `torch.export.Dim`, or where it is seen first: ``x.shape[0]``.
        low: The least size.
        high: The largest size; `None` if there is no limit.
    """

    name: str
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of the arguments.

    Attributes:
        name: The argument as the user writes it: ``batch['mask']``.
        dtype: A tensor's dtype; `None` for a number or a constant.
        device: A tensor's device.
        layout: A tensor's layout.
        sizes: A tensor's sizes; an `int` is fixed, a `str` is a key of :attr:`InputPlan.dimensions`.
        dimension: For an int that may differ: its key of :attr:`InputPlan.dimensions`, empty if it has no
            bounds.
        value: What export took as a constant.
    """

    name: str
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    layout: torch.layout | None = None
    sizes: tuple[int | str, ...] = ()
    dimension: str | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class InputPlan:
    """All leaves, the dimensions they share, and what else export assumed."""

    leaves: tuple[Leaf, ...]
    dimensions: Mapping[str, Dimension]
    guards: tuple[Instruction, ...]
    argument_names: tuple[str, ...]


def plan_inputs(program: ExportedProgram, dynamic_shapes: Any = None) -> InputPlan:
    """Read from an exported program what its arguments must be.

    Args:
        program: The exported program.
        dynamic_shapes: What was given to :func:`torch.export.export`, if known: names of dimensions, and
            bounds that the program alone does not tell from export's own assumptions.

    Returns:
        The leaves in the order in which the arguments flatten.
    """
    placeholders = [
        node
        for node, spec in zip(
            program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True
        )
        if spec.kind is InputKind.USER_INPUT
    ]
    names = _argument_names(program)
    paths = _paths(program, len(placeholders))
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    leaves: list[Leaf] = []
    dimensions: dict[str, Dimension] = {}
    sources: dict[str, int] = {}
    symbols: dict[str, tuple[int, int]] = {}
    derived: list[tuple[int, int, Any]] = []

    def dimension(expr: Any, seen: str, declared: Any) -> str:
        key = str(expr)
        low, high = _bounds(ranges.get(key))
        # Export never sees sizes 0 and 1, and calls that a lower bound of 2. Only one that the user declared
        # is kept; where it is not known what was declared, an upper bound says that something was.
        if low == 2 and (high is None or declared is not None) and getattr(declared, "min", None) != 2:
            low = 0
        name = getattr(declared, "__name__", None) or seen
        known = dimensions.setdefault(key, Dimension(name, low, high))
        if known.low < low:
            dimensions[key] = Dimension(known.name, low, high)
        return key

    for index, (node, path) in enumerate(zip(placeholders, paths, strict=True)):
        name, spellings = _names(path, names, node.name)
        sources.update(dict.fromkeys([*spellings, f"L['flat_args'][{index}]"], index))
        value = node.meta.get("val")
        declared = _declared(dynamic_shapes, path, names)
        if isinstance(value, torch.Tensor):
            sizes: list[int | str] = []
            for place, size in enumerate(value.shape):
                if not isinstance(size, torch.SymInt):
                    sizes.append(int(size))
                    continue
                expr = size.node.expr
                sizes.append(dimension(expr, f"{name}.shape[{place}]", _entry(declared, place)))
                if expr.is_Symbol:
                    symbols.setdefault(str(expr), (index, place))
                else:
                    derived.append((index, place, expr))
            leaves.append(Leaf(name, value.dtype, value.device, value.layout, tuple(sizes)))
        elif isinstance(value, torch.SymInt):
            # No size: export's own lower bound is all there is.
            leaves.append(Leaf(name, dimension=dimension(value.node.expr, name, None)))
        else:
            leaves.append(Leaf(name, value=value))
    guards = Guards(sources, symbols)
    for index, place, expr in derived:
        if all(str(symbol) in symbols for symbol in expr.free_symbols):
            shown = _shown(
                _python(expr), {s: f"{leaves[i].name}.shape[{p}]" for s, (i, p) in symbols.items()}
            )
            seen = f"L['flat_args'][{index}].size()[{place}]"
            guards.require(f"{seen} == {_python(expr)}", f"{leaves[index].name}.shape[{place}] == {shown}")
    display = {source: leaves[index].name for source, index in sources.items()}
    for text in getattr(program, "_guards_code", None) or ():
        guards.require(text, _shown_guard(text, display))
    return InputPlan(tuple(leaves), dimensions, tuple(guards.code), tuple(names))


def _argument_names(program: ExportedProgram) -> list[str]:
    signature = program.module_call_graph[0].signature if program.module_call_graph else None
    return list(getattr(signature, "forward_arg_names", None) or ())


def _paths(program: ExportedProgram, count: int) -> list[tuple[Any, ...]]:
    """For each leaf: 0 or 1 for args or kwargs, the position or keyword, then the keys inside."""
    if program.example_inputs is not None:
        paths = [path for path, _ in pytree.tree_flatten_with_path(program.example_inputs)[0]]
        if len(paths) == count:
            return paths
    spec = program.call_spec.in_spec
    return [path for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten(range(count), spec))[0]]


def _names(path: tuple[Any, ...], names: Sequence[str], fallback: str) -> tuple[str, list[str]]:
    kind, first, *rest = path
    inner = pytree.keystr(tuple(rest))
    positional = dict(enumerate(names))
    name = str(first.key) if kind.idx == 1 else positional.get(first.idx, fallback)
    spellings = [f"L[{name!r}]{inner}"]
    if variadic := re.fullmatch(r"(.+)_(\d+)", name):  # *args arrive as args_0, args_1
        spellings.append(f"L[{variadic[1]!r}][{variadic[2]}]{inner}")
        spellings.append(f"L[{variadic[1] + '_' + variadic[2]!r}]{inner}")
    return name + inner, spellings


def _declared(dynamic_shapes: Any, path: tuple[Any, ...], names: Sequence[str]) -> Any:
    """The user's dynamic_shapes for one leaf: follows the path as far as it goes."""
    kind, first, *rest = path
    entry = dynamic_shapes
    name = first.key if kind.idx == 1 else dict(enumerate(names)).get(first.idx)
    for keys in (
        (name, getattr(first, "idx", None)),
        *((getattr(k, "key", None), getattr(k, "idx", None)) for k in rest),
    ):
        found = [_entry(entry, key) for key in keys if key is not None]
        entry = next((f for f in found if f is not None), None)
    return entry


def _entry(container: Any, key: Any) -> Any:
    if isinstance(container, Mapping):
        return container.get(key)
    if isinstance(container, (list, tuple)) and isinstance(key, int) and key < len(container):
        return container[key]
    return None


def _bounds(bounds: Any) -> tuple[int, int | None]:
    if bounds is None:
        return 0, None
    low = int(bounds.lower) if bounds.lower.is_Integer else 0
    return low, int(bounds.upper) if bounds.upper.is_Integer else None


def _python(expr: Any) -> str:
    from torch.utils._sympy.printers import PythonPrinter

    return str(PythonPrinter().doprint(expr))


def _shown(text: str, symbols: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda m: symbols.get(m[0], m[0]), text)


def _shown_guard(text: str, display: Mapping[str, str]) -> str:
    for source in sorted(display, key=len, reverse=True):
        text = text.replace(source, display[source])
    return re.sub(r"\.size\(\)\[(\d+)\]", r".shape[\1]", text)
