"""Which way is recommended, why, and that the settings to copy run."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.compare.conftest import PROCESSES, THREADS, figures, found
from tests.conftest import run_in_child
from torchgil.compare._contenders import Contender, contenders
from torchgil.compare._recommendation import best, recommend
from torchgil.compare._run import Result


def test_the_best_is_the_fastest_or_close_to_it_with_less_memory():
    lean, fast = found(THREADS, figures(96, memory=50)), found(PROCESSES, figures(100, memory=200))
    assert best([lean, fast]) is lean
    assert best([found(THREADS, figures(90, memory=50)), fast]) is fast
    assert best([Result(THREADS, (), "error")]) is None


def test_a_way_that_came_as_far_as_the_chosen_one_is_named():
    fast = found(THREADS, figures(90), figures(100), figures(110))
    near = found(PROCESSES, figures(70), figures(85), figures(91))
    slow = found(Contender("single"), figures(50), figures(51), figures(52))
    assert best([slow, near, fast]) is fast
    text = recommend([slow, near, fast])
    assert (
        "The visits overlap: 2 x 1 threads, nogil 90.0 to 110.0 requests/s, 2 processes 70.0 to 91.0.\n"
        in text
    )
    assert "1 thread, 1 intra-op 50.0" not in text
    apart = found(PROCESSES, figures(70), figures(85), figures(89))
    assert "overlap" not in recommend([slow, apart, fast])


def test_the_recommendation_has_the_reason_and_the_settings():
    single = found(Contender("single"), figures(50))
    text = recommend([single, found(THREADS, figures(100, 100, 1)), found(PROCESSES, figures(80, 400, 10))])
    assert "2.00x 1 thread" in text
    assert "against 2 processes 1.25x the throughput, 0.25x the memory and 0.10x the start-up" in text
    assert "torchgil.ThreadPool(2, intra_op_threads=1)" in text
    text = recommend([single, found(THREADS, figures(60, share=0.4)), found(PROCESSES, figures(100, 400))])
    assert "Processes win by 1.67x" in text
    assert "40% of their time" in text
    assert "pure-Python work" in text
    assert "keep a crash to themselves" in text
    assert recommend([Result(THREADS, (), "x")]) == "Nothing could be measured."


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


ROWS = contenders(2, 2, quick=True)
OF_THREADS = [row for row in ROWS if row.kind in ("single", "threads")]


def settings(row):
    """The settings to copy for this row, and a check of what they give."""
    _, *code = recommend([found(row, figures(10))]).splitlines()
    code = textwrap.dedent("\n".join(code))
    if row.asyncio:
        code = f"async def main():\n{textwrap.indent(code, '    ')}\n    check(result)\nasyncio.run(main())"
    elif row.kind == "single":
        code += "\ncheck(result)"
    elif row.kind == "threads":
        code += "\ncheck(future.result())"
    else:
        code += "\n    check(future.result())"  # under its `if __name__ == "__main__"`
    return code


@pytest.mark.slow
def test_the_settings_to_copy_run_as_they_stand_and_answer_as_the_model():
    child = run_in_child("\n".join([COPIED, *map(settings, OF_THREADS)]))
    assert child.stdout.splitlines() == ["as the model"] * len(OF_THREADS)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row not in OF_THREADS], ids=lambda row: row.name)
def test_the_settings_for_processes_run_as_they_stand_and_answer_as_the_model(row, tmp_path):
    path = tmp_path / "copied.py"  # the other processes import it
    path.write_text(COPIED + settings(row))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "as the model\n"), done.stderr


def test_the_settings_have_the_batch_size_that_was_measured():
    text = recommend([found(Contender("threads", 2, 1, batching=True), figures(10))])
    assert "concurrency=2, max_batch_size=6)" in text


def test_processes_are_explained_by_what_was_measured():
    processes = found(PROCESSES, figures(100, 50))
    tie = recommend([found(THREADS, figures(101, 90)), processes])
    assert "the same throughput as 2 x 1 threads, nogil (0.99x), in less memory" in tie
    assert "pure-Python" not in tie
    no_wait = recommend([found(THREADS, figures(50, share=0.01)), processes])
    assert "only 1% of their time: the reason is another" in no_wait
