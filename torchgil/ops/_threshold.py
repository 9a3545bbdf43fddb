"""From how much work on ``adaptive`` releases the GIL.

Releasing it costs little; getting it back can cost a switch interval (5 ms) when
another thread is busy in Python. For work of microseconds that is a bad bargain.
"""

from __future__ import annotations

import math
import os
import warnings

from torchgil._checks import number
from torchgil._torch_half import C

__all__ = ["adaptive_threshold", "set_adaptive_threshold"]

_ENVIRONMENT = "TORCHGIL_ADAPTIVE_THRESHOLD_US"


def adaptive_threshold() -> float:
    """The estimated seconds of work from which on ``adaptive`` releases the GIL.

    Returns:
        Seconds; 100e-6 unless set_adaptive_threshold() or the environment
        variable TORCHGIL_ADAPTIVE_THRESHOLD_US (microseconds) said otherwise.
        A value of the variable that is no threshold is warned of, and ignored.

    >>> import torchgil
    >>> 0 <= torchgil.adaptive_threshold()
    True
    """
    return C.adaptive_threshold()


def set_adaptive_threshold(seconds: float) -> None:
    """Sets the threshold of ``adaptive`` for the whole process.

    Args:
        seconds: 0 always releases the GIL, infinity never does.

    Raises:
        ValueError: seconds is negative or NaN; nothing is changed.
        TypeError: seconds is no number.

    >>> import torchgil
    >>> before = torchgil.adaptive_threshold()
    >>> torchgil.set_adaptive_threshold(1e-3)
    >>> torchgil.adaptive_threshold()
    0.001
    >>> torchgil.set_adaptive_threshold(before)
    """
    wanted = "a number, 0 or more"
    C.set_adaptive_threshold(number("set_adaptive_threshold: seconds", seconds, 0, math.inf, wanted=wanted))


def _threshold_from_environment() -> None:
    text = os.environ.get(_ENVIRONMENT)
    if text is None:
        return
    try:
        set_adaptive_threshold(float(text) * 1e-6)
    except ValueError:
        # No error: this runs while torch is imported, by programs too that never use torchgil.
        warnings.warn(
            f"{_ENVIRONMENT} must be a number of microseconds, 0 or more, got {text!r}; it is ignored, and "
            f"the threshold is {adaptive_threshold() * 1e6:g} us: mend or unset it",
            stacklevel=2,
        )


_threshold_from_environment()
