"""Threads against processes: what is compared, measured, recommended and printed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from tests.serving.conftest import wait_until
from torchgil.cli import compare as command
from torchgil.serving.compare import Result, best, compare, recommend
from torchgil.serving.contenders import Contender, contenders, moved_bytes, start
from torchgil.serving.measure import Figures
from torchgil.serving.subject import load

ROOT = Path(__file__).parent.parent.parent
SUBJECTS = """
import atexit, multiprocessing, os, pathlib, threading, time
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

def prints_at_exit():
    atexit.register(print, "bye")
    return (lambda x: x * 2), torch.ones(1, 2)

def slow_in_workers():
    if multiprocessing.parent_process() is not None:
        pathlib.Path("worker").write_text(str(os.getpid()))
        time.sleep(300)
    return (lambda x: x * 2), torch.ones(1, 2)

def tells_who_answers():
    return tell, torch.ones(1, 2)

def tell(x):
    pathlib.Path(f"answered_{os.getpid()}_{threading.get_ident()}").touch()
    return x

def fails_where_others_wait():
    first = iter([False, True])
    def answer(x):
        if next(first):
            raise OSError("the second answer")
        return x
    return answer, torch.ones(1, 2)

def view():
    return (lambda x: (x * 2)[:, 0]), torch.ones(1, 50, 8)
"""


@pytest.fixture
def subjects(tmp_path, monkeypatch):
    path = tmp_path / "subjects_of_compare.py"
    path.write_text(SUBJECTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, path.stem, raising=False)  # of the test before
    return "subjects_of_compare.py"


def figures(rate, memory=100.0, start_up=1.0, share=0.0):
    return Figures(start_up, rate, 0.01, 0.02, memory * 1.2, memory, 0, 0, share, max_batch_size=6)


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
    assert serving.max_batch_size == 8


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


COPIED = """
import asyncio, multiprocessing
from concurrent.futures import ProcessPoolExecutor
import torch, torchgil

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x, pair):
        return self.linear(x) + pair["scale"] * pair["shift"]

def factory():
    torch.manual_seed(0)
    rows = torch.ones(3, 8)
    return Model(), (rows, {"scale": 2 * rows, "shift": 3 * rows})

model, args = factory()
model.eval()
kwargs = {}
with torch.inference_mode():
    expected = model(*args)

def check(found):
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    print("as the model")
"""


@pytest.mark.slow
@pytest.mark.parametrize("row", contenders(2, 2, quick=True), ids=lambda row: row.name)
def test_the_settings_to_copy_run_as_they_stand_and_answer_as_the_model(row, tmp_path):
    _, *code = recommend([Result(row, figures(10))]).splitlines()
    code = textwrap.dedent("\n".join(code))
    if row.asyncio:
        code = f"async def main():\n{textwrap.indent(code, '    ')}\n    check(result)\nasyncio.run(main())"
    elif row.kind == "single":
        code += "\ncheck(result)"
    elif row.kind == "threads":
        code += "\ncheck(future.result())"
    else:
        code += "\n    check(future.result())"  # under its `if __name__ == "__main__"`
    path = tmp_path / "copied.py"
    path.write_text(COPIED + code)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "as the model\n"), done.stderr


@pytest.mark.slow
def test_the_command_measures_every_way_of_a_real_model(subjects):
    command_line = [sys.executable, "-m", "torchgil", "compare", f"{subjects}:small", "--quick"]
    done = subprocess.run(
        [*command_line, "--seconds", "0.2", "--workers", "2", "--json", "out.json"],
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
    assert all(row["figures"]["pss_mb"] is None or row["figures"]["pss_mb"] > 50 for row in rows)
    assert "Take " in done.stdout


@pytest.mark.slow
def test_what_an_exit_handler_prints_does_not_lose_the_figures(subjects):
    (result,) = compare([Contender("single")], f"{subjects}:prints_at_exit", in_flight=1, seconds=0.1)
    assert result.error == ""
    assert result.figures is not None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
def test_a_way_that_is_given_up_leaves_no_process_behind(subjects):
    worker = Path("worker")
    results = []
    way = Contender("processes", 1)
    arguments = {"in_flight": 1, "seconds": 0.1, "timeout": 30}
    measuring = threading.Thread(
        target=lambda: results.extend(compare([way], f"{subjects}:slow_in_workers", **arguments))
    )
    measuring.start()
    measuring.join(60)
    assert "no result within 30 s" in results[0].error
    pid = int(worker.read_text())
    status = Path(f"/proc/{pid}/stat")
    wait_until(lambda: not status.exists() or status.read_text().split()[2] == "Z")


@pytest.mark.slow
@pytest.mark.parametrize("way", [PROCESSES, Contender("threads", 2)], ids=lambda way: way.kind)
def test_every_worker_has_answered_when_a_way_has_started(subjects, way):
    for _ in range(2):
        for answered in Path().glob("answered_*"):
            answered.unlink()
        serving = start(way, f"{subjects}:tells_who_answers", in_flight=2)
        try:
            assert len(list(Path().glob("answered_*"))) == 2
        finally:
            serving.close()


@pytest.mark.slow
def test_threads_that_are_busy_in_python_are_seen_to_wait_for_the_gil():
    example = f"{ROOT / 'examples' / 'pure_python.py'}:factory"
    ways = [Contender("single"), Contender("threads", 2), PROCESSES]
    single, threads, processes = [r.figures for r in compare(ways, example, in_flight=4, seconds=0.5)]
    assert single.gil_wait_share < 0.2
    assert 0.25 < threads.gil_wait_share < 0.75  # one at a time: a half
    assert processes.gil_wait_share is None


def test_an_answer_that_fails_leaves_no_worker_waiting_for_it(subjects):
    with pytest.raises(OSError, match="the second answer"):
        start(Contender("threads", 2), f"{subjects}:fails_where_others_wait", in_flight=2)


def test_the_settings_have_the_batch_size_that_was_measured():
    text = recommend([Result(Contender("threads", 2, 1, batching=True), figures(10))])
    assert "concurrency=2, max_batch_size=6)" in text


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

    def measure(rows, factory, *, started, **options):
        for row in rows:
            started(row)
        return [Result(row, figures(10)) for row in rows]

    monkeypatch.setattr(command, "compare", measure)
    assert command.main(["--quick", "--workers", "2"]) == 0
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert command.main(["--quick", "--workers", "2"]) == 0
    shown = terminal.getvalue().split("\r\x1b[K")
    bars = [text for text in shown if text.startswith("[")]
    assert bars[0] == f"[{'':20}] 1/8 1 thread, {max(1, torchgil.usable_cores() // 2)} intra-op"
    assert bars[-1].startswith("[#################   ] 8/8 ")
    assert shown[-1] == ""  # wiped at the end


def test_a_view_moves_its_whole_storage_and_a_storage_moves_once(subjects):
    _, shared = moved_bytes(f"{subjects}:view")
    assert shared == 2 * 50 * 8 * 4


def test_a_file_with_the_name_of_another_module_is_told_so(subjects, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "queue.py").write_text("def factory(): return len, [1]")
    with pytest.raises(ValueError, match="has the name of a module that is there already"):
        load("folder/queue.py:factory")


def test_processes_are_explained_by_what_was_measured():
    processes = Result(PROCESSES, figures(100, 50))
    tie = recommend([Result(THREADS, figures(101, 90)), processes])
    assert "the same throughput as 2 x 1 threads, nogil (0.99x), in less memory" in tie
    assert "pure-Python" not in tie
    no_wait = recommend([Result(THREADS, figures(50, share=0.01)), processes])
    assert "only 1% of their time: the reason is another" in no_wait


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
