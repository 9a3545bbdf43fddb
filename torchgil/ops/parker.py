"""A parker: where one thread stops until another lets it go on, asleep or, for some microseconds, awake.

>>> import threading
>>> parker = Parker()
>>> threading.Timer(0.01, parker.unpark).start()
>>> parker.park(10)
True
>>> parker.spin(0.001)  # the token is taken
False
"""

from torchgil._build import C

Parker = C.Parker

__all__ = ["Parker"]
