"""The watchdog names the line that held the GIL, and is silent where nothing did."""

from __future__ import annotations

import inspect
import json
import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchgil
from tests.tracing.loads import busy_in_python, threads
from torchgil import held, released

NUMBERS = [random.random() for _ in range(1_200_000)]
TEXT = json.dumps(NUMBERS[:800_000])
# Each is one line that holds the GIL for several times the threshold.
HOLDS: dict[str, Callable[[], Any]] = {
    "a held op that burns": lambda: held.spin(0.3),
    "a held op that blocks": lambda: held.sleep(0.3),
    "torch.tensor(list)": lambda: torch.tensor(NUMBERS),
    "sorted": lambda: sorted(NUMBERS),
    "json.loads": lambda: json.loads(TEXT),
    "a regular expression that backtracks": lambda: re.match(r"(a+)+$", "a" * 24 + "b"),
    "sum(range)": lambda: sum(range(30_000_000)),
}
# The C call that holds is in a Python function of the standard library for these.
INNERMOST = {"json.loads": "raw_decode", "a regular expression that backtracks": "match"}

X = torch.randn(1500, 1500)


@pytest.mark.parametrize("name", HOLDS)
def test_names_the_exact_line(name: str) -> None:
    call = HOLDS[name]
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        call()
    assert watchdog.holds, "not seen"
    hold = max(watchdog.holds, key=lambda hold: hold.duration_s)
    line = inspect.getsourcelines(call)[1]
    assert (__file__, line, "<lambda>") in [
        (frame.filename, frame.lineno, frame.name) for frame in hold.stack
    ]
    assert hold.function == INNERMOST.get(name, "<lambda>")
    if name not in INNERMOST:
        assert (hold.filename, hold.lineno) == (__file__, line)
    assert (hold.thread_name, hold.ident) == ("MainThread", threading.main_thread().ident)
    assert hold.exact
    assert hold.duration_s > 0.05


@pytest.mark.parametrize(
    "call",
    [
        lambda: released.spin(0.5),
        lambda: released.sleep(0.5),
        lambda: time.sleep(0.5),
        lambda: [X @ X for _ in range(5)],
        lambda: busy_in_python(0.5),
        lambda: [torch.add(X, 1) for _ in range(200)],
    ],
    ids=["released burns", "released blocks", "time.sleep", "matmul", "python loop", "many ops"],
)
def test_is_silent_for_what_releases_or_gives_way(call: Callable[[], Any]) -> None:
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        call()
        control()
    assert [hold.function for hold in watchdog.holds] == ["control"], watchdog.holds


def control() -> None:
    """What must be seen at the end of a test in which nothing else may be: the watchdog was awake.

    It sleeps: of a hold that burns, other processes take a part, and what is left may be too short.
    """
    held.sleep(0.3)


def test_is_silent_for_many_python_threads_that_take_turns() -> None:
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        with threads(12, lambda: busy_in_python(1.0)):
            pass
        control()
    assert [hold.function for hold in watchdog.holds] == ["control"], watchdog.holds


def test_asks_for_the_gil_only_where_somebody_holds_it() -> None:
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        time.sleep(0.5)
        released.spin(0.5)
        at_rest = watchdog.knocks
        busy_in_python(0.5)
        assert at_rest <= 2 < watchdog.knocks  # 2: what came between the calls


def test_names_the_right_thread_among_busy_and_blocked_ones() -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            busy_in_python(0.01)

    def culprit() -> None:
        for _ in range(8):
            held.sleep(0.15)
            busy_in_python(0.02)
        time.sleep(0.5)  # a thread that has ended has no name any more
        stop.set()

    first_line = inspect.getsourcelines(culprit)[1]
    with (
        torchgil.Watchdog(threshold=0.05) as watchdog,
        threads(3, busy, "busy"),
        threads(1, lambda: released.spin(0.5), "released"),
        threads(3, stop.wait, "blocked"),
        threads(1, culprit, "culprit"),
    ):
        pass
    holds = watchdog.holds
    assert len(holds) >= 4
    assert {hold.thread_name for hold in holds} == {"culprit-0"}, holds
    # Where it ran on before it was looked at, the line may be a later one, and the hold says so.
    exact = [hold for hold in holds if hold.exact]
    assert {(hold.filename, hold.lineno, hold.function) for hold in exact} == {
        (__file__, first_line + 2, "culprit")
    }


def test_under_overload_a_line_that_may_be_a_later_one_is_not_called_exact() -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            busy_in_python(0.001)
            time.sleep(0)  # hands the GIL on between two looks

    def culprit() -> None:
        for _ in range(12):
            held.sleep(0.08)  # it needs no core, for which it would wait longer than it holds
            busy_in_python(0.01)
        stop.set()

    line = inspect.getsourcelines(culprit)[1] + 2
    with (
        torchgil.Watchdog(threshold=0.03) as watchdog,
        threads(4, lambda: released.spin(3), "released"),  # more than there are cores for
        threads(3, busy, "busy"),
        threads(1, culprit, "culprit"),
    ):
        pass
    mine = [hold for hold in watchdog.holds if hold.thread_name == "culprit-0"]
    assert mine, watchdog.holds
    assert {hold.lineno for hold in mine if hold.exact} <= {line}, mine


def test_sees_a_thread_that_threading_does_not_know_and_one_that_has_ended() -> None:
    import _thread

    done = threading.Lock()
    done.acquire()

    def run() -> None:
        held.spin(0.2)
        done.release()

    with torchgil.Watchdog(threshold=0.05) as watchdog:
        _thread.start_new_thread(run, ())
        done.acquire()
    (hold,) = watchdog.holds
    assert hold.function == "run"
    assert hold.thread_name not in ("", "MainThread")
    with torchgil.Watchdog(threshold=0.05) as watchdog, threads(1, lambda: held.spin(0.2), "short-lived"):
        pass
    assert [hold.thread_name for hold in watchdog.holds] == ["short-lived-0"]


def test_names_the_line_of_threads_that_end_at_once_while_the_main_thread_waits_for_them() -> None:
    """Who gets the GIL after the hold is a race between the main thread, the watchdog and the thread itself.

    A thread that wins it may be gone, and its line with it, before anybody looked; its name is there all the
    same. How often that happens depends on the load, so that only most lines have to be there.
    """
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        for _ in range(15):
            with threads(1, lambda: held.sleep(0.12), "short-lived"):
                pass
    assert len(watchdog.holds) >= 14, watchdog.holds
    named = Counter((hold.thread_name, hold.function) for hold in watchdog.holds)
    assert named.pop(("short-lived-0", "<lambda>")) >= 8
    assert not named or set(named) == {("short-lived-0", "")}  # gone before anybody looked


def test_holds_are_there_as_soon_as_the_call_returned() -> None:
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        held.spin(0.2)
        assert len(watchdog.holds) == 1


def test_calls_on_hold_and_survives_what_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def on_hold(hold: torchgil.LongHold) -> None:
        seen.append(hold)
        raise ValueError("from on_hold")

    with torchgil.Watchdog(threshold=0.05, on_hold=on_hold) as watchdog:
        held.spin(0.2)
        held.spin(0.2)
    assert seen == watchdog.holds
    assert len(seen) == 2
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError, ValueError]


def test_logs_a_warning_with_line_and_stack_without_on_hold(caplog: pytest.LogCaptureFixture) -> None:
    with torchgil.Watchdog(threshold=0.05):
        held.spin(0.2)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torchgil.watchdog", logging.WARNING)
    text = record.getMessage()
    assert re.match(r"MainThread held the GIL for \d+\.\d ms at .*test_watchdog\.py:\d+ in test_logs_", text)
    assert "held.spin(0.2)" in text
    assert "Stack (most recent call last):" in text


def test_a_thread_that_has_ended_is_not_taken_for_the_next_one_at_its_address() -> None:
    """Who looks the culprit up has the address of a thread state, which the next thread gets."""
    with torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None) as watchdog:
        for number in range(20):
            with threads(1, lambda: held.sleep(0.12), f"holds {number}"):
                pass
            with threads(1, lambda: time.sleep(0.01), f"harmless {number}"):
                pass
    assert len(watchdog.holds) >= 10, watchdog.holds
    assert {hold.thread_name.split()[0] for hold in watchdog.holds} == {"holds"}
