"""The watchdog starts and stops, at any time and from any thread, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.support.retries import once
from tests.tracing.loads import busy_in_python, threads
from torchgil import held
from torchgil.tracing import _text as text
from torchgil.watching import _watchdog as module


def native_thread_names() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ended meanwhile
            names.append((task / "comm").read_text().strip())
    return names


def watchdogs_threads() -> list[str]:
    return [name for name in native_thread_names() if name.startswith("torchgil-")]


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
    held.sleep(0.2)
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


def test_a_traces_hints_do_not_speak_of_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    hints: list[str] = []

    def it_waited() -> None:
        with torchgil.trace() as t, torchgil.Watchdog(threshold=0.02, on_hold=lambda hold: None):
            for _ in range(3):
                held.spin(0.1)
        hints.extend(t.report().hints)
        assert any("torchgil-knock" in thread.name for thread in t.report().threads)
        with monkeypatch.context() as patch:
            patch.setattr(text, "_KNOCKER", "somebody else")  # the control: it does wait
            assert any("torchgil-knock" in hint for hint in text.hints(t.report()))

    once(it_waited)
    assert not [hint for hint in hints if "torchgil-knock" in hint]


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
        held.sleep(0.8)  # the control: more than two turns is a hold
    assert [round(hold.duration_s, 1) for hold in watchdog.holds] in ([0.7], [0.8]), watchdog.holds


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
            """,
            whole_end=True,
        )


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
            for _ in range(3):
                pid = os.fork()
                if pid == 0:
                    break
                assert os.waitpid(pid, 0)[1] == 0
            if pid == 0:
                before = functions(watchdog)  # the parent's, where a fork took it long
                assert not watchdog.running and watchdog.knocks == 0
                held.spin(0.12)
                assert functions(watchdog) == before
                watchdog.start()
            for _ in range(3):  # another process may have the core for most of one
                held.spin(0.15)
        assert set(functions(watchdog)) == {"<module>"}, functions(watchdog)
        """
    )
    assert child.exit_code == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_a_start_leaves_the_child_no_lock() -> None:
    run_in_child(
        """
        import os, threading, torchgil, warnings
        from torchgil.watching import _watchdog as module
        warnings.simplefilter("ignore", DeprecationWarning)
        original, inside, go_on = module._Session, threading.Event(), threading.Event()
        def session(watchdog):
            inside.set()
            go_on.wait()
            return original(watchdog)
        module._Session = session
        watchdog = torchgil.Watchdog(on_hold=lambda hold: None)
        thread = threading.Thread(target=watchdog.start)
        thread.start()
        inside.wait()
        module._Session = original
        pid = os.fork()
        if pid == 0:
            assert not watchdog.running
            watchdog.start()
            assert watchdog.running
            watchdog.stop()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        go_on.set()
        thread.join()
        assert watchdog.running
        watchdog.stop()
        """,
        timeout=60,
    )


def test_does_not_deadlock_with_locks_of_the_watched_code() -> None:
    run_in_child(
        """
        import threading, torchgil
        from torchgil import held, released
        lock = threading.Lock()
        told = []
        def work():
            for _ in range(10):
                with lock:
                    held.sleep(0.02)
                    released.sleep(0.01)
        def on_hold(hold):
            with lock:
                told.append(hold)
        with torchgil.Watchdog(threshold=0.015, mean_gap=0.001, on_hold=on_hold) as watchdog:
            threads = [threading.Thread(target=work) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        assert told and told == watchdog.holds, (len(told), len(watchdog.holds))
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
