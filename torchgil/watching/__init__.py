"""Who holds the GIL, by looking at it from a native thread: the watchdog, and the monitor."""

from __future__ import annotations

from torchgil._wakeup import WakeupLatency, wakeup_latency
from torchgil.watching._holds import Hang, LongHold, Waiting
from torchgil.watching._monitor import GilMonitor, MonitorStats
from torchgil.watching._watchdog import Watchdog, WatchdogStats

__all__ = [
    "GilMonitor",
    "Hang",
    "LongHold",
    "MonitorStats",
    "Waiting",
    "WakeupLatency",
    "Watchdog",
    "WatchdogStats",
    "wakeup_latency",
]
