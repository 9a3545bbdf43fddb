"""Models whose whole forward is one release of the GIL."""

from torchgil import _torch_half as _torch_half  # first: where there is no torch that fits, it says so
