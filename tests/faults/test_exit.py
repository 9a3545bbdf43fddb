"""The interpreter ends while a daemon thread begins, has or ends something of ours: exit code 0, and silence.

A daemon thread is cut off where it next asks for the GIL. Before Python 3.14 that unwinds its stack, and the
process aborts where a C++ destructor is on it. Inside torch it aborts so, too (docs/reliability.md), so that
there are no tensors here. Which line a thread is at takes luck: each case is tried several times, and twenty
times as often in `make stress`.
"""

from __future__ import annotations

import os
import sys

import pytest

from ..conftest import run_in_child

TRIES = 6 * int(os.environ.get("TORCHGIL_STRESS_TIMES", "1"))

# How it is made, begun and ended.
THINGS = {
    "trace": ("t = torchgil.trace(max_events=1000)", "t.start()", "t.stop()"),
    "watchdog": ("t = torchgil.Watchdog()", "t.start()", "t.stop()"),
    "monitor": ("t = torchgil.GilMonitor(interval=0.001)", "t.start()", "t.stop()"),
    "priority": ("t = torchgil.gil_priority()", "t.__enter__()", "t.__exit__(None, None, None)"),
    "pool": ("t = torchgil.ThreadPool(1)", "t.submit(int).result()", "t.shutdown()"),
    "batcher": (
        "t = torchgil.Batcher(list, max_delay=0, collate=list, split=lambda r, n: r, rows=lambda x: 1)",
        "t.submit(1).result()",
        "t.shutdown()",
    ),
}

CODE = """
    import gc, os, random, sys, threading, time, torch, torchgil
    make, begin, end, tries = sys.argv[1:]
    names, BatcherClosed = dict(torch=torch, torchgil=torchgil), torchgil.BatcherClosed
    exec(f"{make}; {begin}; {end}", dict(names))  # so that no import is cut off: that is Python's own
    gc.collect()
    gc.freeze()  # half of the time that an interpreter takes to end

    def run(when, there):
        own = dict(names)
        try:
            exec(f"{make}; {begin}", own)
            there.set()
            if when == "running":
                threading.Event().wait()
            exec(end, own)
            while True:
                exec(f"{make}; {begin}; {end}", own)
        except RuntimeError as error:  # refused, since the interpreter ends
            if "shutdown" not in str(error) and not isinstance(error, BatcherClosed):
                raise

    for attempt in range(int(tries)):
        when = ("begun", "running", "begun and ended in turn")[attempt % 3]
        if pid := os.fork():
            ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert ended == 0, f"{when}: attempt {attempt} ended with {ended}"
            continue
        there = threading.Event()
        for _ in range(1 if "trace" in make else 2):
            threading.Thread(target=run, args=(when, there), daemon=True).start()
        if when != "begun":
            there.wait()
            time.sleep(random.Random(attempt).random() * 0.02)
        break
"""


@pytest.mark.parametrize("thing", THINGS)
def test_the_interpreter_ends_amid_the_begin_the_run_and_the_end_of(thing: str) -> None:
    child = run_in_child(CODE, *THINGS[thing], str(TRIES), timeout=60 + 3 * TRIES, whole_end=True)
    assert (child.stdout, child.stderr) == ("", "")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="from 3.14 on no thread is unwound")
def test_torch_s_own_release_aborts_so() -> None:
    """The control: what these tests look for ends a process, and is seen."""
    thing = ("x = torch.ones(100, 100)", "x @ x", "x @ x")
    child = run_in_child(CODE, *thing, "60", check=False, timeout=120, whole_end=True)
    assert child.exit_code == 1
    assert "ended with -6" in child.stderr
