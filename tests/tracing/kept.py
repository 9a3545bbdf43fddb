"""What the tests of saved reports share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torchgil
from torchgil.tracing._chrome import chrome_trace


def views(report: torchgil.Report) -> dict[str, Any]:
    """All that a report shows, but for the picture that needs matplotlib."""
    recording = report.recording
    middle_ns = (recording.start_ns + recording.stop_ns) // 2
    return {
        "text": str(report),
        "html": report._repr_html_(),
        "numbers": report.to_dict(),
        "hints": report.hints,
        "chrome trace": "".join(chrome_trace(report)) if report.has_timeline else "",
        "segments": [list(segments) for segments in report.segments],
        "spans": [
            report.span(t.native_id, recording.start_ns - 1, middle_ns)
            for t in recording.threads
            if report.has_timeline
        ],
    }


def is_kept(report: torchgil.Report) -> torchgil.Report:
    """The report, saved and loaded: it shows the same, and saved again it is the same file."""
    with tempfile.TemporaryDirectory() as folder:
        first, again = Path(folder, "first.json"), Path(folder, "again.json")
        report.save_json(first)
        loaded = torchgil.Report.load(first)
        loaded.save_json(again)
        assert again.read_bytes() == first.read_bytes()
    assert loaded == report
    assert views(loaded) == views(report)
    return loaded
