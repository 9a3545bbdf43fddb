"""What tracing needs to know of the ops: torch.compile and torch.export.

Never called at run time: the kernels themselves are C++ alone.
"""

from __future__ import annotations

from typing import Any

import torch

from torchgil._build import C
from torchgil._imports import when_imported

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


def _let_dynamo_trace() -> None:
    """A compiled graph calls the dispatcher: released.add in it is torch.ops.torchgil.add."""

    def add(a: Any, b: Any, *, alpha: Any = 1) -> Any:
        return torch.ops.torchgil.add(a, b, alpha=alpha)

    def matmul(a: Any, b: Any) -> Any:
        return torch.ops.torchgil.matmul(a, b)

    def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
        return torch.ops.torchgil.rms_norm(x, weight, eps)

    def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        return torch.ops.torchgil.nms(boxes, scores, iou_threshold)

    for policy in (C.released, C.held, C.adaptive):
        for traceable in (add, matmul, rms_norm, nms):
            torch.compiler.substitute_in_graph(getattr(policy, traceable.__name__))(traceable)


when_imported("torch._dynamo", _let_dynamo_trace)
