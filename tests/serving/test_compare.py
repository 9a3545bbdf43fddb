"""Threads against processes: what is compared, measured, recommended and printed."""

from __future__ import annotations

import json

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from torchgil.cli import compare as command
from torchgil.serving.compare import Result, best, compare, recommend
from torchgil.serving.contenders import Contender, contenders, start
from torchgil.serving.measure import Figures
from torchgil.serving.subject import load

SUBJECTS = """
import torch

def small():
    print("a factory may print")
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()), torch.randn(1, 8)

def keywords():
    return (lambda x, scale: x * scale), {"x": torch.ones(1, 2), "scale": torch.ones(1, 2)}

def broken():
    raise OSError("no weights here")

class Unpicklable(torch.nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.hook = lambda x: x

def unpicklable():
    return Unpicklable(), (torch.randn(1, 8),)

def two_rows():
    return (lambda x: x * 2), torch.randn(2, 8)

def rows_depend_on_each_other():
    return (lambda x: x - x.mean(0)), torch.randn(2, 8)

def nothing():
    return 5
"""


@pytest.fixture
def subjects(tmp_path, monkeypatch):
    path = tmp_path / "subjects_of_compare.py"
    path.write_text(SUBJECTS)
    monkeypatch.chdir(tmp_path)
    return "subjects_of_compare.py"


def figures(rate, memory=100.0, start_up=1.0, share=0.0):
    return Figures(start_up, rate, 0.01, 0.02, memory * 1.2, memory, 0, 0, share)


THREADS = Contender("threads", 2, 1, nogil=True)
PROCESSES = Contender("processes", 2, 1)


def test_every_way_of_serving_is_compared():
    rows = contenders(2, 2, quick=False)
    assert len(set(rows)) == len(rows) == len({row.name for row in rows})
    for wanted in (
        Contender("single", 1, 1),
        Contender("threads", 2, 1),
        THREADS,
        PROCESSES,
        Contender("shared", 2, 1),
        Contender("threads", 2, 1, nogil=True, asyncio=True),
        Contender("threads", 2, 1, nogil=True, batching=True),
        Contender("threads", 4, 2, nogil=True),  # of the grid
    ):
        assert wanted in rows
    assert set(contenders(2, 2, quick=True)) < set(rows)


def test_subjects_are_loaded_by_name(subjects):
    assert load(f"{subjects}:small").call().shape == (1, 8)
    assert torch.equal(load(f"{subjects}:keywords").call(), torch.ones(1, 2))
    for name, error, message in (
        ("subjects", ValueError, "MODULE:FACTORY"),
        (f"{subjects}:absent", ValueError, "has no absent"),
        (f"{subjects}:nothing", TypeError, "must return"),
        (f"{subjects}:broken", OSError, "no weights here"),
    ):
        with pytest.raises(error, match=message):
            load(name)


@pytest.mark.slow
def test_each_way_is_measured_in_a_fresh_process(subjects):
    rows = [
        Contender("single"),
        Contender("threads", 1),
        Contender("threads", 1, asyncio=True),
        Contender("threads", 1, batching=True),
        PROCESSES,
    ]
    results = compare(rows, f"{subjects}:small", in_flight=4, seconds=0.2)
    for result in results:
        assert result.error == ""
        measured = result.figures
        assert measured.requests_per_s > 0
        assert 0 < measured.p50_s <= measured.p99_s
        assert measured.uss_mb > 50
        assert measured.start_up_s > 0
    *in_one, apart = [result.figures for result in results]
    assert all(measured.pickled_bytes == 0 and measured.gil_wait_share >= 0 for measured in in_one)
    assert apart.pickled_bytes > 0
    assert apart.shared_bytes == 64  # one row of eight floats there, one back
    assert apart.gil_wait_share is None
    assert apart.uss_mb > 2 * in_one[0].uss_mb  # each process has its own torch


@pytest.mark.slow
def test_what_fails_tells_its_own_traceback_and_the_rest_goes_on(subjects):
    ways = [Contender("shared", 1), Contender("single")]
    shared, single = compare(ways, f"{subjects}:unpicklable", in_flight=1, seconds=0.1)
    assert shared.figures is None
    assert "pickle" in shared.error
    assert single.figures is not None
    (broken,) = compare([Contender("single")], f"{subjects}:broken", in_flight=1, seconds=0.1)
    assert "OSError: no weights here" in broken.error
    (late,) = compare([Contender("single")], f"{subjects}:small", in_flight=1, seconds=0.1, timeout=0.01)
    assert "no result within" in late.error


@pytest.mark.slow
def test_a_model_whose_rows_depend_on_each_other_is_not_batched(subjects):
    batched = Contender("threads", 1, batching=True)
    (result,) = compare([batched], f"{subjects}:rows_depend_on_each_other", in_flight=2, seconds=0.1)
    assert "not close" in result.error


def test_batches_leave_every_worker_its_share_of_what_is_in_flight(subjects, monkeypatch):
    made = []

    class Spied(torchgil.Batcher):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("torchgil.serving.contenders.Batcher", Spied)
    serving = start(Contender("threads", 2, batching=True), f"{subjects}:two_rows", in_flight=8)
    try:
        for future in [serving.submit() for _ in range(64)]:
            future.result(60)
    finally:
        serving.close()
    assert max(made[0].stats().batch_rows) == 8  # four requests of two rows


def test_the_best_is_the_fastest_or_close_to_it_with_less_memory():
    lean, fast = Result(THREADS, figures(96, memory=50)), Result(PROCESSES, figures(100, memory=200))
    assert best([lean, fast]) is lean
    assert best([Result(THREADS, figures(90, memory=50)), fast]) is fast
    assert best([Result(THREADS, None, "error")]) is None


def test_the_recommendation_has_the_reason_and_the_settings():
    single = Result(Contender("single"), figures(50))
    text = recommend([single, Result(THREADS, figures(100, 100, 1)), Result(PROCESSES, figures(80, 400, 10))])
    assert "2.00x 1 thread" in text
    assert "against 2 processes 1.25x the throughput, 0.25x the memory and 0.10x the start-up" in text
    assert "torchgil.ThreadPool(2, intra_op_threads=1)" in text
    text = recommend([single, Result(THREADS, figures(60, share=0.4)), Result(PROCESSES, figures(100, 400))])
    assert "Processes win by 1.67x" in text
    assert "40% of their time" in text
    assert "pure-Python work" in text
    assert "keep a crash to themselves" in text
    assert recommend([Result(THREADS, None, "x")]) == "Nothing could be measured."


@pytest.mark.parametrize("row", contenders(2, 2, quick=True), ids=lambda row: row.name)
def test_the_settings_to_copy_are_python(row):
    _, *code = recommend([Result(row, figures(10))]).splitlines()
    source = "\n".join(line.strip() for line in code)
    compile("async def copied():\n  " + "\n  ".join(source.splitlines()), "copied", "exec")


def test_the_command_prints_writes_and_draws(monkeypatch, capsys, tmp_path):
    results = [
        Result(Contender("single"), figures(50)),
        Result(THREADS, figures(100)),
        Result(Contender("shared", 2, 1), None, "Traceback ...\nOSError: its own"),
    ]
    monkeypatch.setattr(command, "compare", lambda *args, **kwargs: results)
    data, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert command.main(["--quick", "--json", str(data), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "* 2 x 1 threads, nogil" in out
    assert "failed: 2 processes, shared weights\nTraceback ...\nOSError: its own" in out
    assert "Take 2 x 1 threads, nogil" in out
    written = json.loads(data.read_text())
    assert (written["format"], written["version"]) == ("torchgil-compare", 1)
    assert written["rows"][1]["figures"]["requests_per_s"] == 100
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(command, "compare", lambda *args, **kwargs: results[2:])
    assert command.main([]) == 1


def test_the_command_explains_itself_and_refuses_nonsense():
    child = run_in_child("from torchgil.cli import main; raise SystemExit(main(['compare', '--help']))")
    assert "examples:" in child.stdout
    with pytest.raises(SystemExit) as left:
        command.main(["--workers", "0"])
    assert left.value.code == 2
