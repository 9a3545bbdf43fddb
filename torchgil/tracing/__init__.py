"""Who held the GIL, for how long, and who waited: the trace, the verdict, the watchdog."""

from __future__ import annotations

from torchgil.tracing.audit import Audit, audit
from torchgil.tracing.figures import OpReport, ThreadReport
from torchgil.tracing.monitor import GilMonitor, MonitorStats
from torchgil.tracing.report import Report
from torchgil.tracing.trace import Trace, trace
from torchgil.tracing.wakeup import WakeupLatency, wakeup_latency
from torchgil.tracing.watchdog import LongHold, Watchdog, WatchdogStats

__all__ = [
    "Audit",
    "GilMonitor",
    "LongHold",
    "MonitorStats",
    "OpReport",
    "Report",
    "ThreadReport",
    "Trace",
    "WakeupLatency",
    "Watchdog",
    "WatchdogStats",
    "audit",
    "trace",
    "wakeup_latency",
]
