"""`torchgil compare`: what it prints, writes, draws and refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchgil
from tests.compare.conftest import THREADS, figures, found
from tests.conftest import run_in_child
from torchgil.cli import compare as command
from torchgil.compare._contenders import Contender, contenders
from torchgil.compare._measure import Figures
from torchgil.compare._run import NotLoadedError, Result


@pytest.mark.slow
def test_the_command_measures_every_way_of_a_real_model_in_fresh_processes(subjects):
    command_line = [sys.executable, "-m", "torchgil", "compare", f"{subjects}:small", "--quick"]
    done = subprocess.run(
        [*command_line, "--seconds", "0.2", "--visits", "1", "--workers", "2", "--json", "out.json"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(Path("out.json").read_text())
    assert (written["factory"], written["workers"], written["in_flight"]) == (f"{subjects}:small", 2, 8)
    assert {"cores", "cpu", "python", "torch", "torchgil"} <= written["machine"].keys()
    rows = written["rows"]
    assert [row["name"] for row in rows] == [
        row.name for row in contenders(2, torchgil.usable_cores(), quick=True)
    ]
    assert [row["error"] for row in rows] == [""] * len(rows)
    assert "Take " in done.stdout
    in_one, apart = [], []
    for row in rows:
        measured = Figures(**row["figures"])
        (apart if row["contender"]["kind"] in ("processes", "shared") else in_one).append(measured)
        assert measured.requests_per_s > 0
        assert 0 < measured.p50_s <= measured.p99_s
        assert measured.uss_mb > 50
        assert measured.pss_mb is None or measured.pss_mb > 50
        assert measured.start_up_s > 0
    for measured in in_one:
        assert measured.pickled_bytes == 0
        assert measured.gil_wait_share >= 0
    for measured in apart:
        assert measured.pickled_bytes > 0
        assert measured.shared_bytes == 64  # one row of eight floats there, one back
        assert measured.gil_wait_share is None
        assert measured.uss_mb > 2 * in_one[0].uss_mb  # each process has its own torch


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_where_a_file_cannot_be_written_is_said_before_anything_is_measured(
    option, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "compare", lambda *args, **kwargs: pytest.fail("it measures"))
    with pytest.raises(SystemExit) as left:
        command.main([option, str(tmp_path / "nowhere" / "file")])
    assert left.value.code == 2
    assert "no folder" in capsys.readouterr().err


def test_the_progress_bar_is_for_a_terminal_alone(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def measure(rows, factory, *, started, visits, **options):
        for row in visits * rows:
            started(row)
        return [found(row, figures(10)) for row in rows]

    monkeypatch.setattr(command, "compare", measure)
    assert command.main(["--quick", "--workers", "2"]) == 0
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert command.main(["--quick", "--workers", "2"]) == 0
    shown = terminal.getvalue().split("\r\x1b[K")
    bars = [text for text in shown if text.startswith("[")]
    assert bars[0] == f"[{'':20}] 1/24 1 thread, {max(1, torchgil.usable_cores() // 2)} intra-op"
    assert bars[-1].startswith(f"[{'#' * 19} ] 24/24 ")
    assert shown[-1] == ""  # wiped at the end


def test_the_command_prints_writes_and_draws(monkeypatch, capsys, tmp_path):
    results = [
        found(Contender("single"), figures(50)),
        found(THREADS, figures(90), figures(100), figures(120)),
        Result(Contender("shared", 2, 1), (), "Traceback ...\nOSError: its own"),
    ]
    monkeypatch.setattr(command, "compare", lambda *args, **kwargs: results)
    data, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert command.main(["--quick", "--json", str(data), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "* 2 x 1 threads, nogil" in out
    assert "failed: 2 processes, shared weights\nTraceback ...\nOSError: its own" in out
    assert "Take 2 x 1 threads, nogil" in out
    written = json.loads(data.read_text())
    assert (written["format"], written["version"]) == ("torchgil-compare", 2)
    threads = written["rows"][1]
    assert threads["figures"]["requests_per_s"] == 100
    assert threads["extremes"]["requests_per_s"] == [90, 120]
    assert [visit["requests_per_s"] for visit in threads["visits"]] == [90, 100, 120]
    assert "100.0 (90.0 to 120.0)" in out
    assert "Medians (and extremes) of 3 visits." in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(command, "compare", lambda *args, **kwargs: results[2:])
    assert command.main([]) == 1


def test_a_factory_that_cannot_be_loaded_ends_it_with_what_mends_it(monkeypatch, capsys, tmp_path):
    def measure(*args, **options):
        raise NotLoadedError("ValueError: app has no factory; it has make_model")

    monkeypatch.setattr(command, "compare", measure)
    assert command.main(["app:factory"]) == 1
    assert "app has no factory; it has make_model" in capsys.readouterr().err
    monkeypatch.setattr(command, "compare", lambda *args, **kwargs: pytest.fail("it measures"))
    for name, message in (("app", "MODULE:FACTORY"), ("nowhere.py:factory", "no file nowhere.py")):
        with pytest.raises(SystemExit) as left:
            command.main([name])
        assert left.value.code == 2
        assert message in capsys.readouterr().err


def test_the_command_explains_itself_and_refuses_nonsense():
    child = run_in_child("from torchgil.cli import main; raise SystemExit(main(['compare', '--help']))")
    assert "examples:" in child.stdout
    with pytest.raises(SystemExit) as left:
        command.main(["--workers", "0"])
    assert left.value.code == 2
