"""What a graph writes to: refused where it is an input or a parameter, which all threads share.

A buffer or a lifted constant that is written makes the program one with state: each session has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch

from torchgil.forward._unsupported import refuse

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = ["Roots", "check_call"]

# annotated as views, but copies where they must be
_PERHAPS_VIEWS: Final = frozenset(
    f"aten::{name}"
    for name in (
        "to",
        "contiguous",
        "reshape",
        "reshape_as",
        "flatten",
        "ravel",
        "resolve_conj",
        "resolve_neg",
    )
)

# which torch tags as no such
_RESIZES: Final = frozenset(["aten::resize_as_", "aten::resize_as_sparse_", "aten::rename_"])


class Roots:
    """For each value, the inputs and weights whose memory it may share.

    Schemas annotate views and in-place results, so those are known here. An operator without annotations may
    still hand back its argument (`dropout` in eval mode does): such results are *unsure* and checked when
    they are written.

    Attributes:
        written: The names of the buffers and lifted constants that are written for sure.
    """

    def __init__(self) -> None:
        self.written: set[str] = set()
        self._sure: dict[Any, frozenset[Any]] = {}
        self._unsure: set[Any] = set()
        self._names: dict[Any, str] = {}
        self._state: dict[Any, str] = {}

    def add(self, value: Any, name: str, state: str | None = None) -> None:
        """An input or weight, by the name errors give it; `state` names a buffer, which may be written."""
        self._sure[value] = frozenset([value])
        self._names[value] = name
        if state is not None:
            self._state[value] = state

    def write(self, value: Any) -> str:
        """Note that `value` is written. What must not be, by the names that errors give it, or ""."""
        roots = self.sure(value)
        self.written |= {self._state[root] for root in roots if root in self._state}
        return " and ".join(sorted(self._names[root] for root in roots if root not in self._state))

    def name(self, value: Any) -> str:
        """What `value` is or is a view of, by the names that errors give it, or ""."""
        return " and ".join(sorted(self._names[root] for root in self.sure(value)))

    def sure(self, value: Any) -> frozenset[Any]:
        """The inputs and weights that `value`, an operand, is or is a view of."""
        return frozenset().union(*(self._sure.get(v, frozenset()) for v in _flat(value)))

    def unsure(self, value: Any) -> bool:
        """Whether `value` may share memory with one although no schema says so."""
        return any(v in self._unsure for v in _flat(value))

    def pass_on(self, operands: list[Any], output: Any) -> None:
        """`output` may be any of `operands`, or an item of one."""
        if names := self.sure(operands):
            self._sure[output] = names
        if self.unsure(operands):
            self._unsure.add(output)

    def derive(self, op: Any, operands: Iterable[Any], outputs: tuple[Any, ...], *, unpack: bool) -> None:
        """Note what an operator's results share memory with."""
        arguments = list(zip(op._schema.arguments, operands, strict=True))
        touched = any(self.sure(o) or self.unsure(o) for _, o in arguments)
        returns = list(op._schema.returns) * (len(outputs) if unpack else 1)
        for returned, output in zip(returns, outputs, strict=True):
            if returned.alias_info is None:
                if touched:
                    self._unsure.add(output)
                continue
            sets = returned.alias_info.before_set  # empty for a list of views, whatever they are of
            shared = [
                o
                for a, o in arguments
                if a.alias_info is not None and (not sets or sets & a.alias_info.before_set)
            ]
            if op._schema.name == "aten::set_":  # no schema says that self is `source` from now on
                shared = [o for _, o in arguments]
                self.pass_on(shared, arguments[0][1])
            perhaps = op._schema.name in _PERHAPS_VIEWS
            if (names := self.sure(shared)) and not perhaps:
                self._sure[output] = names
            if self.unsure(shared) or (names and perhaps):
                self._unsure.add(output)


def check_call(node: Node, op: Any, operands: tuple[Any, ...], roots: Roots) -> tuple[int, ...]:
    """Refuse an operator that writes to an input or a parameter, or that trains.

    Args:
        node: The call.
        op: Its `OpOverload`.
        operands: One for each argument of the schema.
        roots: What the operands share memory with.

    Returns:
        The arguments written to that must be checked when the instruction runs.

    Raises:
        NotImplementedError: The call writes to shared memory, or is in training mode.
    """
    unsafe: list[int] = []
    for place, (argument, operand) in enumerate(zip(op._schema.arguments, operands, strict=True)):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        if names := roots.write(operand):
            refuse(
                f"it writes to {names}, a data race between threads",
                "write the model so that it returns the new value (x = x + 1, not x += 1); if a "
                "layer does so in training mode, call model.eval() before the export",
                node,
            )
        if (torch.Tag.inplace_view in op.tags or op._schema.name in _RESIZES) and roots.sure(operand):
            refuse(
                f"it changes the shape or the memory of {roots.name(operand)}, not its values",
                "keep both as they are, and write values (copy_, index_copy_)",
                node,
            )
        if roots.unsure(operand):
            unsafe.append(place)
    given = {a.name: getattr(o, "value", None) for a, o in zip(op._schema.arguments, operands, strict=True)}
    has_stats = any(
        a.name == "running_mean" and (o in roots._sure or roots.unsure(o))
        for a, o in zip(op._schema.arguments, operands, strict=True)
        if not isinstance(o, list)
    )
    if op.namespace == "aten" and (what := _training(given, has_stats)):
        refuse(what, "call model.eval() before torch.export or torchgil.nogil", node)
    return tuple(unsafe)


def _training(given: dict[str, Any], has_stats: bool) -> str:
    # the schemas name these arguments alike: dropout(p, train), batch_norm(training),
    # instance_norm(use_input_stats), lstm(dropout, train), rrelu(training),
    # scaled_dot_product_attention(dropout_p)
    training = given.get("train") is True or given.get("training") is True
    if training and any((given.get(p) or 0) > 0 for p in ("p", "dropout", "dropout_p")):
        return "dropout in training mode"
    if (given.get("dropout_p") or 0) > 0:
        return "attention with dropout"
    if has_stats and (training or given.get("use_input_stats") is True):
        return "normalisation in training mode, which updates its running statistics"
    if training and "lower" in given:
        return "rrelu in training mode"
    return ""


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for v in value:
            yield from _flat(v)
    elif value.__hash__ is not None and not hasattr(value, "value"):
        yield value
