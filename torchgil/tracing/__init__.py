"""Who held the GIL, for how long, and who waited: the trace, the verdict, the watchdog."""

from __future__ import annotations

from torchgil.tracing.audit import Audit, audit
from torchgil.tracing.report import OpReport, Report, ThreadReport
from torchgil.tracing.trace import Trace, trace

__all__ = ["Audit", "OpReport", "Report", "ThreadReport", "Trace", "audit", "trace"]
