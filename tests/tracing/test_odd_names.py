"""A name with a newline, an escape sequence or half a surrogate pair breaks no line of what is printed."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch.profiler import record_function

import torchgil
from tests.conftest import run_torchgil
from torchgil.watching import LongHold, MonitorStats
from torchgil.watching._summary import summary

ODD = "a\nb\x1b[2Jc\ud800"
SHOWN = r"a\nb\x1b[2Jc\ud800"


def whole(text: str) -> bool:
    """Whether each line of it can be printed, and the odd name is there."""
    text.encode()
    return SHOWN in text and all(line.isprintable() for line in text.split("\n"))


def traced(body):
    with torchgil.trace() as t:
        thread = threading.Thread(target=body, name=ODD)
        thread.start()
        thread.join()
    return t.report()


def test_a_report_shows_the_names_of_threads_escaped_and_keeps_them():
    report = traced(lambda: torchgil.held.sleep(0.05))
    assert ODD in [thread.name for thread in report.threads]
    assert whole(str(report))
    assert SHOWN in report._repr_html_()
    rows = [line for line in str(report).splitlines() if SHOWN in line]
    assert rows[0].startswith(f"{SHOWN}  ")


def test_a_report_shows_the_names_of_blocks_escaped():
    def body():
        with record_function("block\nof two lines"):
            torch.ones(2).add(1)

    lines = str(traced(body)).splitlines()
    assert any(line.startswith(r"block\nof two lines  ") for line in lines)


def test_hints_are_lines(monkeypatch):
    monkeypatch.setattr("torchgil.tracing._text.LONG_HOLD_S", 0.0)
    report = traced(gc.collect)
    assert any(hint.startswith(f"{SHOWN} was in a garbage collection") for hint in report.hints)
    assert all(hint.isprintable() for hint in report.hints)


def hold(**more):
    values = {
        "duration_s": 0.1, "queued_s": 0.0, "thread_name": ODD, "ident": 1, "filename": "", "lineno": 0,
        "function": "", "stack": (), "exact": True,
    }  # fmt: skip
    return LongHold(**{**values, **more})


def test_a_watchdogs_lines_and_tables_show_them_escaped():
    assert whole(str(hold()))
    assert whole(summary([hold(), hold()], 0.05))
    assert str(hold()).startswith(f"{SHOWN} held the GIL for 100.0 ms")


def test_a_monitors_lines_show_them_escaped():
    stats = MonitorStats(
        0.5, {ODD: 0.5, "MainThread": 0.1}, 100, {ODD: 50}, 1.0, 0.0, 0.1, {ODD: 0.1}, {ODD: 10}
    )
    assert whole(str(stats))
    assert len(str(stats).splitlines()) == 4


SCRIPT = """
import threading
from torchgil import held
thread = threading.Thread(target=held.sleep, args=(0.3,), name="two\\nlines")
thread.start()
thread.join()
"""


@pytest.mark.parametrize("command", [["audit", "--fail-if-held", "50ms"], ["watch", "--fail"]])
def test_the_commands_show_them_escaped(command, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    child = run_torchgil(*command, script)
    assert child.exit_code == 3
    assert r"two\nlines held the GIL" in child.stderr
    assert not [line for line in child.stderr.splitlines() if line.startswith("lines")]
