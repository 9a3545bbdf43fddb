"""Which slot of the frame holds which value, and until when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torchgil.forward._operands import Instruction, Operand, Region, Slot, walk

__all__ = ["Slots"]


class Slots:
    """Gives values slots, and takes them back after their last use: narrow graphs have small frames."""

    def __init__(self, num_values: int) -> None:
        self.uses = [0] * num_values
        self.slot_of: dict[int, int] = {}
        self.free: list[int] = []
        self.size = 0

    def count_uses(self, code: Iterable[Instruction | Region], outputs: list[Operand]) -> None:
        for step in walk(code):
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
