"""What torchgil writes into the packages it compiles, so that whoever loads one can check the arguments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.utils._pytree as pytree
from torch.export.graph_signature import ConstantArgument, TensorArgument

from torchgil.forward._inputs import Dimension, InputPlan, Leaf
from torchgil.forward._operands import Constant, Input, Instruction, Slot

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["METADATA_KEY", "Manifest"]

METADATA_KEY: Final = "torchgil"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The arguments' checks and the results' kinds, as text and back.

    Attributes:
        inputs: What the arguments must be.
        formats: Each tensor's memory format when it was exported: compiled code relies on it.
        outputs: For each flat output ``("tensor", None)``, ``("number", None)`` or ``("constant", value)``.
        frozen: Whether the weights' values were compiled in, folded and packed.
    """

    inputs: InputPlan
    formats: tuple[str, ...]
    outputs: tuple[tuple[str, Any], ...]
    frozen: bool = False

    @classmethod
    def of(cls, program: ExportedProgram, inputs: InputPlan, *, frozen: bool = False) -> Manifest:
        """The manifest of an exported program.

        Raises:
            NotImplementedError: An input or output is of a kind that packages do not have, or an input's
                strides are of no memory format.
        """
        for leaf in inputs.leaves:
            if leaf.dimension is not None:
                raise NotImplementedError(
                    f"nogil: backend='inductor' takes no int that changes, and {leaf.name!r} is one; "
                    "use backend='graph', or pass a tensor"
                )
        examples = pytree.tree_leaves(program.example_inputs)
        formats = [_format(leaf, x) for leaf, x in zip(inputs.leaves, examples, strict=True) if leaf.dtype]
        outputs: list[tuple[str, Any]] = []
        for spec in program.graph_signature.output_specs:
            if isinstance(spec.arg, ConstantArgument):
                if isinstance(spec.arg.value, (str, bool)):
                    raise NotImplementedError(
                        "nogil: backend='inductor' returns tensors and numbers, and one output is the "
                        f"constant {spec.arg.value!r}; return it outside the model, or use backend='graph'"
                    )
                outputs.append(("constant", spec.arg.value))
            else:
                outputs.append(("tensor" if isinstance(spec.arg, TensorArgument) else "number", None))
        return cls(inputs, tuple(formats), tuple(outputs), frozen)

    def dumps(self) -> str:
        """As text."""
        leaves = [
            {**asdict(leaf), **{k: _name(getattr(leaf, k)) for k in ("dtype", "device", "layout")}}
            for leaf in self.inputs.leaves
        ]
        return json.dumps(
            {
                "format": 1,
                "leaves": leaves,
                "dimensions": {key: asdict(d) for key, d in self.inputs.dimensions.items()},
                "guards": [(guard.op, [_operand(o) for o in guard.operands]) for guard in self.inputs.guards],
                "argument_names": self.inputs.argument_names,
                "formats": self.formats,
                "outputs": self.outputs,
                "frozen": self.frozen,
            }
        )

    @classmethod
    def loads(cls, text: str) -> Manifest:
        """From text.

        Raises:
            ValueError: The text is of a later format.
        """
        data = json.loads(text)
        if data["format"] != 1:
            raise ValueError(
                f"the package was made by a later torchgil (format {data['format']}); update this one"
            )
        leaves = [
            Leaf(
                name=leaf["name"],
                dtype=leaf["dtype"] and getattr(torch, leaf["dtype"]),
                device=leaf["device"] and torch.device(leaf["device"]),
                layout=leaf["layout"] and getattr(torch, leaf["layout"]),
                sizes=tuple(leaf["sizes"]),
                value=leaf["value"],
            )
            for leaf in data["leaves"]
        ]
        dimensions = {key: Dimension(**d) for key, d in data["dimensions"].items()}
        guards = [
            Instruction(
                "guard", "", op, None, tuple(_OPERANDS[kind](value) for kind, value in operands), (slot,)
            )
            for slot, (op, operands) in enumerate(data["guards"])
        ]
        inputs = InputPlan(tuple(leaves), dimensions, tuple(guards), tuple(data["argument_names"]))
        outputs = tuple((kind, value) for kind, value in data["outputs"])
        # an earlier version froze nothing, and said nothing of it
        return cls(inputs, tuple(data["formats"]), outputs, data.get("frozen", False))


def _format(leaf: Leaf, example: torch.Tensor) -> str:
    for name in ("contiguous_format", "channels_last", "channels_last_3d"):
        rank = {"channels_last": 4, "channels_last_3d": 5}.get(name, example.dim())
        if example.dim() == rank and example.is_contiguous(memory_format=getattr(torch, name)):
            return name
    raise NotImplementedError(
        f"nogil: backend='inductor' compiles for the strides of its inputs, and those of {leaf.name!r} are "
        f"{example.stride()} for the sizes {tuple(example.shape)}; export with {leaf.name}.contiguous()"
    )


def _name(value: Any) -> str | None:
    return None if value is None else str(value).removeprefix("torch.")


_OPERANDS: Final[dict[str, Any]] = {"Slot": Slot, "Input": Input, "Constant": Constant}


def _operand(operand: Any) -> tuple[str, Any]:
    return type(operand).__name__, operand.value if isinstance(operand, Constant) else operand.index
