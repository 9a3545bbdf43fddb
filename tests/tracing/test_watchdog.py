"""The watchdog names the line that held the GIL, and is silent where nothing did."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import torchgil
from tests.conftest import in_threads, run_in_child
from torchgil import held, released
from torchgil.tracing import watchdog as module

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


def native_thread_names() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ended meanwhile
            names.append((task / "comm").read_text().strip())
    return names


def watchdogs_threads() -> list[str]:
    return [name for name in native_thread_names() if name.startswith("torchgil-")]


def busy_in_python(seconds: float) -> int:
    end, turns = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        turns += 1
    return turns


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
        held.spin(0.3)  # the control: it was awake all the time
    assert [hold.function for hold in watchdog.holds] == ["test_is_silent_for_what_releases_or_gives_way"], (
        watchdog.holds
    )


def test_is_silent_for_many_python_threads_that_take_turns() -> None:
    with torchgil.Watchdog(threshold=0.05) as watchdog, threads(12, lambda: busy_in_python(1.0)):
        pass
    assert watchdog.holds == []


def test_asks_for_the_gil_only_where_somebody_holds_it() -> None:
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        time.sleep(0.5)
        released.spin(0.5)
        at_rest = watchdog.knocks
        busy_in_python(0.5)
        assert at_rest <= 2 < watchdog.knocks  # 2: what came between the calls


@contextmanager
def threads(n: int, fn: Callable[[], Any], name: str = "thread") -> Iterator[None]:
    started = [threading.Thread(target=fn, name=f"{name}-{i}") for i in range(n)]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        for thread in started:
            thread.join()


def test_names_the_right_thread_among_busy_and_blocked_ones() -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            busy_in_python(0.01)

    def culprit() -> None:
        for _ in range(8):
            held.spin(0.15)
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


def test_on_hold_may_stop_its_own_watchdog() -> None:
    stopped = threading.Event()

    def on_hold(hold: torchgil.LongHold) -> None:
        watchdog.stop()
        stopped.set()

    watchdog = torchgil.Watchdog(threshold=0.05, on_hold=on_hold)
    watchdog.start()
    held.spin(0.2)
    assert stopped.wait(30)
    assert not watchdog.running
    watchdog.stop()


def test_stop_does_not_wait_for_ever_for_on_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_CALLBACK_PATIENCE_S", 0.2)
    lock = threading.Lock()
    called = threading.Event()

    def on_hold(hold: torchgil.LongHold) -> None:
        called.set()
        with lock:
            pass

    watchdog = torchgil.Watchdog(threshold=0.05, on_hold=on_hold)
    with lock:
        watchdog.start()
        held.spin(0.2)
        assert called.wait(30)
        watchdog.stop()  # on_hold waits for the lock that this thread has
    assert "on_hold has not returned" in caplog.text


def test_starts_and_stops_any_number_of_times_and_leaves_no_thread() -> None:
    watchdog = torchgil.Watchdog(threshold=0.05)
    watchdog.stop()  # never started
    for _ in range(200):
        watchdog.start()
        watchdog.stop()
        watchdog.stop()
    assert not watchdog.running
    watchdog.start()
    with pytest.raises(RuntimeError, match="running already"):
        watchdog.start()
    held.spin(0.2)
    watchdog.stop()
    assert len(watchdog.holds) == 1
    assert watchdogs_threads() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "torchgil-watchdog"]


def test_stops_from_many_threads_at_once() -> None:
    for _ in range(50):
        watchdog = torchgil.Watchdog()
        watchdog.start()
        with threads(4, watchdog.stop):
            pass
    assert watchdogs_threads() == []


def test_several_watch_at_once() -> None:
    with torchgil.Watchdog(threshold=0.05) as low, torchgil.Watchdog(threshold=0.4) as high:
        held.spin(0.2)
        time.sleep(0.05)  # for both: one knock lasts too short for the other to tell two holds apart by it
        held.spin(0.7)
    assert len(low.holds) == 2
    assert [hold.duration_s > 0.4 for hold in high.holds] == [True]


def test_keeps_the_newest_holds() -> None:
    with torchgil.Watchdog(threshold=0.02, max_holds=2) as watchdog:
        for _ in range(4):
            held.spin(0.15)
    assert len(watchdog.holds) == 2


def test_changes_no_setting_and_leaves_signals_to_the_main_thread() -> None:
    gc_enabled, interval = gc.isenabled(), sys.getswitchinterval()
    with torchgil.Watchdog(threshold=0.05) as watchdog:
        held.spin(0.2)
        for task in Path("/proc/self/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            if status["Name"] in ("torchgil-look", "torchgil-knock"):
                assert int(status["SigBlk"], 16) & 1 << 1, "SIGINT could be delivered here"
        assert len(watchdogs_threads()) == 2 + (sys.version_info >= (3, 14))  # which names its threads
    assert len(watchdog.holds) == 1
    assert (gc.isenabled(), sys.getswitchinterval()) == (gc_enabled, interval)


@pytest.mark.parametrize("threshold", [0, -1, 0.009, float("nan"), float("inf"), "0.05", None, True, 3601])
def test_rejects_a_threshold_it_cannot_tell_from_a_turn(threshold: Any) -> None:
    with pytest.raises(ValueError, match=r"threshold must be from 0\.01 \(twice the switch interval"):
        torchgil.Watchdog(threshold=threshold)


@pytest.mark.parametrize("options", [{"on_hold": 3}, {"max_holds": 0}, {"mean_gap": 0.0}, {"mean_gap": "1"}])
def test_rejects_other_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Watchdog: {next(iter(options))} must be"):
        torchgil.Watchdog(**options)


def test_accepts_the_smallest_threshold_and_follows_the_switch_interval() -> None:
    torchgil.Watchdog(threshold=0.01)
    with torchgil.switch_interval(0.2):
        with pytest.raises(ValueError, match=r"threshold must be from 0\.4"):
            torchgil.Watchdog(threshold=0.05)
    with torchgil.Watchdog(threshold=0.05) as watchdog, torchgil.switch_interval(0.2):
        busy_in_python(1.0)  # has turns of 200 ms now: that is no hold
        time.sleep(0.1)  # the last knock is answered before the interval is short again
    assert watchdog.holds == []


def test_warns_and_watches_nothing_where_the_holder_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.C, "gil_holder_known", lambda: False)
    with pytest.warns(RuntimeWarning, match=r"nothing is watched"), torchgil.Watchdog() as watchdog:
        held.spin(0.2)
    assert watchdog.holds == []


def test_stops_at_interpreter_exit() -> None:
    for end in ("", "sys.exit(0)", "threading.Thread(target=held.spin, args=(0.3,), daemon=True).start()"):
        run_in_child(
            f"""
            import sys, threading, torchgil
            from torchgil import held
            torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None).start()
            held.spin(0.2)
            {end}
            """
        )


def test_cannot_be_started_at_interpreter_exit() -> None:
    child = run_in_child(
        """
        import atexit
        def late():
            try:
                torchgil.Watchdog().start()
            except RuntimeError as error:
                print(error)
        atexit.register(late)  # handlers run in reverse order: after the watchdog's own
        import torchgil
        torchgil.Watchdog
        """
    )
    assert "cannot be started at interpreter exit" in child.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_survives_fork() -> None:
    child = run_in_child(
        """
        import os, sys, warnings, torchgil
        from torchgil import held
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
        def functions(watchdog):
            return [hold.function for hold in watchdog.holds]
        with torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None) as watchdog:
            for _ in range(20):
                pid = os.fork()
                if pid == 0:
                    break
                assert os.waitpid(pid, 0)[1] == 0
            if pid == 0:
                assert not watchdog.running and watchdog.knocks == 0
                held.spin(0.2)
                assert functions(watchdog) == []
                watchdog.start()
            for _ in range(3):  # another process may have the core for most of one
                held.spin(0.3)
        assert set(functions(watchdog)) == {"<module>"}, functions(watchdog)
        """
    )
    assert child.exit_code == 0


def test_does_not_deadlock_with_locks_of_the_watched_code() -> None:
    run_in_child(
        """
        import threading, torchgil
        from torchgil import held, released
        lock = threading.Lock()
        def work():
            for _ in range(10):
                with lock:
                    held.spin(0.02)
                    released.spin(0.01)
        def on_hold(hold):
            with lock:
                pass
        with torchgil.Watchdog(threshold=0.015, mean_gap=0.001, on_hold=on_hold):
            threads = [threading.Thread(target=work) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        """,
        timeout=60,
    )


def test_of_many_who_start_one_at_once_one_does() -> None:
    for _ in range(10):
        watchdog = torchgil.Watchdog()

        def start(_: int, watchdog: torchgil.Watchdog = watchdog) -> bool:
            try:
                watchdog.start()
            except RuntimeError:
                return False
            return True

        assert sum(in_threads(start, 4)) == 1
        watchdog.stop()
    tellers = [thread.name for thread in threading.enumerate() if "torchgil" in thread.name.lower()]
    assert tellers == []
