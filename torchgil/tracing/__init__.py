"""Who held the GIL, for how long, and who waited: the exact trace, and the verdict on a call."""

from __future__ import annotations

from torchgil._extension import Extension
from torchgil._garbage import Collections
from torchgil.tracing._audit import Audit, audit
from torchgil.tracing._figures import OpReport, ThreadReport
from torchgil.tracing._report import Report
from torchgil.tracing._timeline import op_slices
from torchgil.tracing._trace import Trace, trace

__all__ = [
    "Audit",
    "Collections",
    "Extension",
    "OpReport",
    "Report",
    "ThreadReport",
    "Trace",
    "audit",
    "op_slices",
    "trace",
]
