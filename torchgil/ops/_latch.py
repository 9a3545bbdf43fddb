"""A latch: the proof of a release that needs no stopwatch.

>>> import threading, torchgil
>>> latch = torchgil.Latch()
>>> threading.Timer(0.01, latch.open).start()
>>> torchgil.released.wait(latch, timeout=10)  # the timer's thread got the GIL
True
"""

from torchgil._torch_half import C

Latch = C.Latch

__all__ = ["Latch"]
