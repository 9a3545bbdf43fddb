"""What takes longer than two seconds says so on a terminal alone, in one line that is gone afterwards."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from tests.tracing.test_report_file import VERSION_1
from torchgil._terminal import Progress, slow
from torchgil.cli import doctor, main, report


class Shown:
    """A terminal, and when something is first written to it."""

    def __init__(self):
        self.text = ""
        self.written = threading.Event()

    def write(self, text):
        self.text += text
        self.written.set()


def test_a_slow_block_says_what_it_is_at_and_its_line_is_gone_afterwards():
    terminal = Shown()
    with slow("counting", Progress(terminal.write), after_s=0):
        assert terminal.written.wait(60)
    lines = terminal.text.split("\r\x1b[K")
    assert lines[0] == ""
    assert lines[1].startswith("counting, ")
    assert lines[-1] == ""


def test_a_quick_block_says_nothing():
    terminal = Shown()
    with slow("counting", Progress(terminal.write), after_s=3600):
        pass
    assert terminal.text == ""


def test_the_line_is_gone_where_the_block_raises():
    terminal = Shown()

    def fail():
        with slow("counting", Progress(terminal.write), after_s=0):
            assert terminal.written.wait(60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert terminal.text.endswith("\r\x1b[K")
    assert not [t for t in threading.enumerate() if t.name == "torchgil-progress"]


@pytest.mark.parametrize("stderr", [io.StringIO(), None], ids=["a pipe", "none"])
def test_without_a_terminal_nothing_is_written_and_no_thread_begins(stderr, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr)
    with slow("counting", Progress(), after_s=0):
        assert not [t for t in threading.enumerate() if t.name == "torchgil-progress"]
    assert stderr is None or stderr.getvalue() == ""


def test_where_no_thread_can_begin_the_block_runs_all_the_same(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    with slow("counting", Progress(Shown().write), after_s=0):
        done.append(1)
    assert done


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(report, ["report", str(VERSION_1)]), (doctor, ["doctor"])],
    ids=["report", "doctor"],
)
def test_commands_say_it_of_their_work(module, arguments, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(module, "slow", lambda what, progress: said.append(what) or slow(what, progress))
    main(arguments)
    capsys.readouterr()
    assert said
