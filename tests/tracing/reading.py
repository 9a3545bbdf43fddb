"""What the trace's tests read from a report."""

from __future__ import annotations

import threading

from torchgil.tracing import OpReport, Report, ThreadReport


def me(report: Report) -> ThreadReport:
    return next(t for t in report.threads if t.native_id == threading.get_native_id())


def op(report: Report, name: str) -> OpReport:
    return next(o for o in report.ops if o.name == name)
