"""What an exported program wants of its arguments, leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.export.graph_signature import InputKind

from torchgil.forward._guards import Guards
from torchgil.forward._sources import Sources, argument_names, declared_for, places
from torchgil.forward._unsupported import refuse

if TYPE_CHECKING:
    import inspect

    from torch.export import ExportedProgram

    from torchgil.forward._operands import Instruction

__all__ = ["Dimension", "InputPlan", "Leaf", "plan_inputs"]


@dataclass(frozen=True, slots=True)
class Dimension:
    """A size, or an int, that may differ from call to call.

    Attributes:
        name: The name of its `torch.export.Dim`, or where it is seen first: ``x.shape[0]``.
        low: The least size; `None` if there is no limit, for an int.
        high: The largest size; `None` if there is no limit.
    """

    name: str
    low: int | None
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


def plan_inputs(
    program: ExportedProgram, dynamic_shapes: Any = None, signature: inspect.Signature | None = None
) -> InputPlan:
    """Read from an exported program what its arguments must be.

    Args:
        program: The exported program.
        dynamic_shapes: What was given to :func:`torch.export.export`, if known: names of dimensions, and
            bounds that the program alone does not tell from export's own assumptions.
        signature: The model's own signature, if there is a model: tells a parameter ``x_1`` from an item of
            ``*x``.

    Returns:
        The leaves in the order in which the arguments flatten.

    Raises:
        NotImplementedError: What export assumed is not understood, or may be meant of two arguments.
    """
    placeholders = [
        node
        for node, spec in zip(
            program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True
        )
        if spec.kind is InputKind.USER_INPUT
    ]
    found = places(program, [node.name for node in placeholders], signature)
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    leaves: list[Leaf] = []
    dimensions: dict[str, Dimension] = {}
    symbols: dict[str, tuple[int, int | None]] = {}
    derived: list[tuple[int, int | None, Any]] = []

    def dimension(seen: _Seen, name: str, declared: Any) -> str:
        key = str(seen.expr)
        low, high = _bounds(ranges.get(key), declared, is_size=seen.place is not None)
        known = dimensions.setdefault(key, Dimension(getattr(declared, "__name__", None) or name, low, high))
        if low is not None and (known.low is None or known.low < low):
            dimensions[key] = Dimension(known.name, low, high)
        if seen.expr.is_Symbol:
            symbols.setdefault(key, (seen.leaf, seen.place))
        else:
            derived.append((seen.leaf, seen.place, seen.expr))
        return key

    for index, (node, place) in enumerate(zip(placeholders, found, strict=True)):
        value = node.meta.get("val")
        declared = declared_for(place, dynamic_shapes, found)
        if isinstance(value, torch.Tensor):
            sizes = tuple(
                dimension(
                    _Seen(index, i, size.node.expr), f"{place.name}.shape[{i}]", _of_dimension(declared, i)
                )
                if isinstance(size, torch.SymInt)
                else int(size)
                for i, size in enumerate(value.shape)
            )
            leaves.append(Leaf(place.name, value.dtype, value.device, value.layout, sizes))
        elif isinstance(value, torch.SymInt):
            key = dimension(_Seen(index, None, value.node.expr), place.name, declared)
            leaves.append(Leaf(place.name, dimension=key))
        else:
            leaves.append(Leaf(place.name, value=value))
    guards = Guards(Sources(found, signature), symbols)
    for seen_at, at, expr in derived:
        _relate(guards, seen_at, at, expr)
    for text in getattr(program, "_guards_code", None) or ():
        guards.require(text)
    return InputPlan(tuple(leaves), dimensions, tuple(guards.code), tuple(argument_names(program)))


class _Seen(NamedTuple):
    """A size that may change, or an int (its place is None), and what export knows it as."""

    leaf: int
    place: int | None
    expr: Any


def _relate(guards: Guards, index: int, place: int | None, expr: Any) -> None:
    """Assert that a size or int is what its expression says of others."""
    expr = expr.expand()
    unknown = [symbol for symbol in expr.free_symbols if not guards.knows(str(symbol))]
    if not unknown:
        guards.require_equal(index, place, _python(expr))
        return
    # Of 2 * half, where no argument has half rows: the graph was simplified as if it were even.
    factor, offset = expr.coeff(unknown[0], 1), expr.coeff(unknown[0], 0)
    linear = factor * unknown[0] + offset == expr and factor.is_Integer and offset.is_Integer and factor > 0
    if len(unknown) > 1 or not linear:
        refuse(
            f"export takes a size for {_python(expr)}, and no argument shows "
            + ", ".join(sorted(map(str, unknown))),
            "export with other dynamic_shapes",
        )
    guards.define(str(unknown[0]), index, place, int(factor), int(offset))


def _of_dimension(declared: Any, place: int) -> Any:
    if isinstance(declared, Mapping):
        return declared.get(place)
    if isinstance(declared, (list, tuple)) and place < len(declared):
        return declared[place]
    return None


def _bounds(bounds: Any, declared: Any, *, is_size: bool) -> tuple[int | None, int | None]:
    """The least and the largest value; None where there is no limit."""
    low, high = _integer(bounds, "lower"), _integer(bounds, "upper")
    least = getattr(declared, "min", None)  # what the user declared
    if is_size:
        # Export never sees sizes 0 and 1, and calls that a lower bound of 2. Only one that was declared is
        # kept; where it is not known what was declared, an upper bound says that something was.
        if low is None or (low == 2 != least and (high is None or declared is not None)):
            low = 0
    elif low is not None and low <= 2 and low != least:
        # An int starts with the range of sizes, whatever was given; what export learned beyond that stands in
        # its guards. Its own module looks at larger bounds alone.
        low = None
    return low, high


def _integer(bounds: Any, end: str) -> int | None:
    """One end of a range: infinities of torch's own and of sympy's have no integer."""
    value = getattr(bounds, end, None)
    if value is None or not value.is_Integer or not -(2**63) <= value < 2**63:
        return None
    return int(value)


def _python(expr: Any) -> str:
    from torch.utils._sympy.printers import PythonPrinter

    return str(PythonPrinter().doprint(expr))
