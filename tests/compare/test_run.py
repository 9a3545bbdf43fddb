"""Each way in a process of its own: what is measured there, and what a failure leaves."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.compare.conftest import PROCESSES, figures
from tests.serving.conftest import wait_until
from torchgil.compare._contenders import Contender
from torchgil.compare._run import NotLoadedError, compare

ROOT = Path(__file__).parent.parent.parent


def test_visits_take_turns_and_their_median_and_extremes_are_kept(monkeypatch):
    asked = []

    def visit(contender, *options):
        asked.append(contender)
        if contender is PROCESSES and len(asked) > 2:
            return (), "OSError: the second time"
        return (figures(float(10 * len(asked)), share=None),), ""

    monkeypatch.setattr("torchgil.compare._run._visit", visit)
    single, processes = compare([Contender("single"), PROCESSES], "any:thing", in_flight=1, seconds=1)
    assert asked == [Contender("single"), PROCESSES, Contender("single"), PROCESSES, Contender("single")]
    assert single.figures.requests_per_s == 30
    assert single.extremes("requests_per_s") == (10, 50)
    assert single.figures.gil_wait_share is None
    assert "gil_wait_share" not in single.to_dict()["extremes"]
    # What failed once failed, and is not visited again.
    assert (processes.figures, processes.visits, processes.error) == (None, (), "OSError: the second time")


@pytest.mark.slow
def test_what_fails_tells_its_own_traceback_and_the_rest_goes_on(subjects):
    ways = [Contender("shared", 1), Contender("single")]
    shared, single = compare(ways, f"{subjects}:unpicklable", in_flight=1, seconds=0.1, visits=1)
    assert shared.figures is None
    assert (
        "TypeError: a Unpicklable cannot be pickled, and so not be handed to another process" in shared.error
    )
    assert single.figures is not None
    (late,) = compare([Contender("single")], f"{subjects}:small", in_flight=1, seconds=0.1, timeout=0.01)
    assert "no result within" in late.error


@pytest.mark.slow
def test_a_factory_that_fails_or_is_not_there_is_said_after_one_visit(subjects):
    visited = []
    for name, message in (("broken", "OSError: no weights here"), ("absent", "has no absent; it has small")):
        with pytest.raises(NotLoadedError, match=message):
            compare(
                [Contender("single"), PROCESSES],
                f"{subjects}:{name}",
                in_flight=1,
                seconds=0.1,
                timeout=1e300,  # as good as none
                started=visited.append,
            )
    assert visited == [Contender("single")] * 2


def test_a_factory_that_fails_later_is_a_row_that_failed(monkeypatch):
    def visit(contender, *options):
        if contender is PROCESSES:
            raise NotLoadedError("OSError: no weights any more")
        return (figures(10.0),), ""

    monkeypatch.setattr("torchgil.compare._run._visit", visit)
    single, processes = compare([Contender("single"), PROCESSES], "any:thing", in_flight=1, seconds=1)
    assert (len(single.visits), processes.error) == (3, "OSError: no weights any more")


@pytest.mark.slow
def test_a_model_whose_rows_depend_on_each_other_is_not_batched(subjects):
    batched = Contender("threads", 1, batching=True)
    (result,) = compare(
        [batched], f"{subjects}:rows_depend_on_each_other", in_flight=2, seconds=0.1, visits=1
    )
    assert "not close" in result.error


@pytest.mark.slow
def test_what_an_exit_handler_prints_does_not_lose_the_figures(subjects):
    (result,) = compare(
        [Contender("single")], f"{subjects}:prints_at_exit", in_flight=1, seconds=0.1, visits=1
    )
    assert result.error == ""
    assert result.figures is not None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
def test_a_way_that_is_given_up_leaves_no_process_behind(subjects, monkeypatch):
    worker = Path("worker")

    class GivenUp(subprocess.Popen):
        """Its time is up once it has a worker: how long that takes is torch's affair."""

        def communicate(self, input=None, timeout=None):
            if timeout is None:
                return super().communicate(input)
            while self.poll() is None and not (worker.exists() and worker.read_text()):
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", GivenUp)
    way = Contender("processes", 1)
    (result,) = compare([way], f"{subjects}:slow_in_workers", in_flight=1, seconds=0.1, timeout=30)
    assert "no result within 30 s" in result.error
    status = Path(f"/proc/{int(worker.read_text())}/stat")
    wait_until(lambda: not status.exists() or status.read_text().split()[2] == "Z")


@pytest.mark.slow
def test_threads_that_are_busy_in_python_are_seen_to_wait_for_the_gil():
    example = f"{ROOT / 'examples' / 'pure_python.py'}:factory"
    ways = [Contender("single"), Contender("threads", 2)]
    single, threads = [r.figures for r in compare(ways, example, in_flight=4, seconds=0.5, visits=1)]
    assert single.gil_wait_share < 0.2
    assert 0.25 < threads.gil_wait_share < 0.75  # one at a time: a half
