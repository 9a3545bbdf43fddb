"""The GIL is kept while the kernel runs: no other Python thread advances.

>>> import torch, torchgil
>>> torchgil.held.matmul(torch.eye(2), torch.ones(2))
tensor([1., 1.])
"""

from torchgil._build import C

add = C.held.add
matmul = C.held.matmul
rms_norm = C.held.rms_norm
nms = C.held.nms
spin = C.held.spin
sleep = C.held.sleep
wait = C.held.wait

__all__ = ["add", "matmul", "nms", "rms_norm", "sleep", "spin", "wait"]
