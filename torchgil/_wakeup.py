"""How long a sleeping thread takes to wake: what decides the price of a short release."""

from __future__ import annotations

from dataclasses import dataclass

from torchgil._checks import whole
from torchgil._gil_half import C
from torchgil._statistics import quantile

__all__ = ["WakeupLatency", "wakeup_latency"]


@dataclass(frozen=True, slots=True)
class WakeupLatency:
    """From one thread's notify to the other's first instruction, in seconds."""

    p50_s: float
    p99_s: float
    samples: int


def wakeup_latency(samples: int = 500) -> WakeupLatency:
    """Measures how fast a thread that waits for the GIL could take it.

    A release shorter than this usually keeps the GIL, for nobody is awake to take it. A
    longer one, beside a thread that is busy in Python, gives it away and waits a whole
    switch interval for it. Two native threads are used; one burns a core meanwhile.

    Args:
        samples: How often to measure, 1 to 100,000, some 0.3 ms each.

    Raises:
        ValueError: samples is out of range.

    >>> from torchgil._wakeup import wakeup_latency
    >>> latency = wakeup_latency(samples=50)
    >>> 0 < latency.p50_s <= latency.p99_s
    True
    """
    wanted = "an integer from 1 to 100000"
    samples = whole("wakeup_latency: samples", samples, 1, 100_000, wanted=wanted, kind=ValueError)
    latencies = C.wakeup_latencies(samples)
    return WakeupLatency(quantile(latencies, 0.5), quantile(latencies, 0.99), samples)
