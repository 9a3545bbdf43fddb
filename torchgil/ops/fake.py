"""The fake implementation of nms, for tracing alone (torch.compile, torch.export).

How many boxes are kept depends on the data, so the result's size is a symbol,
and only Python can make one. torch imports this module when it first needs it.
"""

import torch

__all__: list[str] = []


@torch.library.register_fake("torchgil::nms")  # type: ignore[untyped-decorator]  # torch's, untyped
def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    torch._check(boxes.dim() == 2 and boxes.shape[1] == 4, lambda: "nms: boxes must have shape [n, 4]")
    torch._check(
        scores.dim() == 1 and scores.shape[0] == boxes.shape[0], lambda: "nms: one score for each box"
    )
    kept = torch.library.get_ctx().new_dynamic_size()
    torch._check(kept <= boxes.shape[0])
    return boxes.new_empty([kept], dtype=torch.int64)
