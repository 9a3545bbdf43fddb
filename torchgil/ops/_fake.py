"""What tracing needs to know of the ops: torch.compile and torch.export.

Never called at run time: the kernels themselves are C++ alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchgil._imports import when_imported
from torchgil._torch_half import C

__all__: list[str] = []


@torch.library.register_fake("torchgil::nms")  # type: ignore[untyped-decorator]  # torch's, untyped
def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    # How many boxes are kept depends on the data, so the result's size is a
    # symbol, and only Python can make one.
    torch._check(boxes.dim() == 2 and boxes.shape[1] == 4, lambda: "nms: boxes must have shape [n, 4]")
    torch._check(
        scores.dim() == 1 and scores.shape[0] == boxes.shape[0], lambda: "nms: one score for each box"
    )
    kept = torch.library.get_ctx().new_dynamic_size()
    torch._check(kept <= boxes.shape[0])
    return boxes.new_empty([kept], dtype=torch.int64)


def _traceable(op: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return op(*args, **kwargs)

    return call


def _let_dynamo_trace() -> None:
    """A compiled graph calls the dispatcher: released.add in it is torch.ops.torchgil.add."""
    for policy in (C.released, C.held, C.adaptive):
        for name in dir(policy):
            op = None if name.startswith("_") else getattr(torch.ops.torchgil, name, None)
            if op is None or all(str(a.type) != "Tensor" for a in op.default._schema.arguments):
                continue  # wait, spin: nothing that a graph is made of
            # The schema's parameters are the function's; tests/test_stub.py holds them equal.
            register = torch.compiler.substitute_in_graph(getattr(policy, name), skip_signature_check=True)
            register(_traceable(op))


when_imported("torch._dynamo", _let_dynamo_trace)
