"""Ops under three GIL policies, from one kernel each.

``released`` releases the GIL while the kernel runs, exactly once per call; ``held``
keeps it; ``adaptive`` keeps it for short work. They are the extension's own modules:
what a binding defines is there. ``torch.ops.torchgil`` is the dispatcher's own path:
there torch has released the GIL before the kernel starts.

>>> import torch, torchgil
>>> torchgil.released.add(torch.ones(2), torch.ones(2), alpha=3)
tensor([4., 4.])
>>> torchgil.held.matmul(torch.eye(2), torch.ones(2))
tensor([1., 1.])
>>> torchgil.adaptive.rms_norm(torch.ones(2), torch.ones(2), eps=0)
tensor([1., 1.])
"""

from torchgil._torch_half import C
from torchgil.ops import _fake as fake
from torchgil.ops._latch import Latch
from torchgil.ops._threshold import adaptive_threshold, set_adaptive_threshold
from torchgil.ops._witness import KernelRecord, witness

released, held, adaptive = C.released, C.held, C.adaptive

__all__ = [
    "KernelRecord",
    "Latch",
    "adaptive",
    "adaptive_threshold",
    "fake",
    "held",
    "released",
    "set_adaptive_threshold",
    "witness",
]
