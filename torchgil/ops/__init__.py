"""Ops under three GIL policies, from one kernel each.

``released`` releases the GIL while the kernel runs, ``held`` keeps it,
``adaptive`` keeps it for short work. ``torch.ops.torchgil`` is the dispatcher's
own path: there torch has released the GIL before the kernel starts.
"""

from torchgil.ops import adaptive, fake, held, released
from torchgil.ops.latch import Latch
from torchgil.ops.witness import KernelRecord, witness

__all__ = ["KernelRecord", "Latch", "adaptive", "fake", "held", "released", "witness"]
