"""What a program is made of: where values come from, what is done with them, and in what order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "Constant",
    "Default",
    "Input",
    "Instruction",
    "Operand",
    "Plan",
    "Region",
    "Slot",
    "State",
    "Weight",
    "walk",
]


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
class State:
    """A buffer or lifted constant that is written, by its place in :attr:`Plan.state`."""

    index: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A Python value the graph holds; converted once, by the type the operator's schema gives it."""

    value: Any


@dataclass(frozen=True, slots=True)
class Default:
    """The schema's own default."""


Operand: TypeAlias = "Slot | Input | Weight | State | Constant | Default | list[Operand]"


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
        state: The names of buffers and lifted constants that are written, in the order :class:`State` counts.
        outputs: The flattened outputs in order.
        new_state: What is copied into tensors of the state when all has run, by their places in `state`.
        ops: The operators used, as ``(name, overload)``, each once.
        count: How many instructions there are, those inside regions included.
    """

    code: tuple[Instruction | Region, ...]
    num_slots: int
    weights: tuple[str, ...]
    state: tuple[str, ...]
    outputs: tuple[Operand, ...]
    new_state: tuple[tuple[int, Operand], ...]
    ops: tuple[tuple[str, str], ...]
    count: int


def walk(code: Iterable[Instruction | Region]) -> Iterator[Instruction]:
    """The instructions in order, those inside regions too."""
    for step in code:
        if isinstance(step, Region):
            yield from walk(step.body)
        else:
            yield step
