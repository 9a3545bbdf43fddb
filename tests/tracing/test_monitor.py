"""The monitor counts who holds the GIL, asks for it never, and leaves nothing behind."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from typing import Any

import pytest

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.serving.amid import At
from tests.tracing.loads import busy_in_python, threads
from tests.tracing.test_watchdog_life import native_thread_names
from torchgil import held, released
from torchgil.watching import MonitorStats


def gone() -> bool:
    """Whether no thread of a monitor is left; the system lists one for a moment after it was joined."""
    end = time.monotonic() + 10
    while "torchgil-look" in native_thread_names() and time.monotonic() < end:
        time.sleep(0.01)
    return "torchgil-look" not in native_thread_names()


def test_says_who_holds_the_gil_and_how_much_of_the_time() -> None:
    with torchgil.GilMonitor(interval=0.001) as monitor:
        held.spin(0.3)
        stats = monitor.stats()
        assert stats.held_share > 0.9, stats
        assert next(iter(stats.threads)) == "MainThread"  # another test's thread may end just then
        assert stats.threads["MainThread"] > 0.9
        monitor.reset()
        released.spin(0.3)
        stats = monitor.stats()
        assert stats.held_share < 0.1, stats
        assert stats.looks > 50


def test_shares_of_threads_add_up_to_that_of_all() -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            busy_in_python(0.001)

    with torchgil.GilMonitor(interval=0.001) as monitor, threads(2, busy, "busy"):
        released.spin(0.5)
        stats = monitor.stats()
        stop.set()
    assert set(stats.threads) >= {"busy-0", "busy-1"}
    assert sum(stats.threads.values()) == pytest.approx(stats.held_share)
    assert sum(stats.held_looks.values()) <= stats.looks
    assert min(stats.threads["busy-0"], stats.threads["busy-1"]) > 0.2, stats
    assert list(stats.threads.values()) == sorted(stats.threads.values(), reverse=True)


def test_agrees_with_the_trace_where_both_look_at_the_same_time() -> None:
    with torchgil.trace() as trace, torchgil.GilMonitor(interval=0.001) as monitor:
        for _ in range(100):
            held.spin(0.001)
            released.spin(0.002)
    report, stats = trace.report(), monitor.stats()
    exact = sum(thread.held_s for thread in report.threads) / report.wall_s
    assert stats.held_share == pytest.approx(exact, abs=5 * stats.standard_error), (stats, report)


def test_never_asks_for_the_gil() -> None:
    monitor = torchgil.GilMonitor(interval=0.001)
    with torchgil.trace() as trace:
        with monitor:
            released.spin(0.2)
            busy_in_python(0.1)
    assert monitor.stats().looks > 20
    assert not any("torchgil" in thread.name for thread in trace.report().threads)
    # The control: a thread that asks is in the trace.
    with torchgil.trace() as trace, torchgil.Watchdog(mean_gap=0.001, on_hold=lambda hold: None):
        busy_in_python(0.2)
    assert any("torchgil-knock" in thread.name for thread in trace.report().threads)


def test_a_window_speaks_of_the_last_stretch() -> None:
    with torchgil.GilMonitor(interval=0.001, max_window=10) as monitor:
        held.spin(0.2)
        released.spin(0.2)
        window, everything = monitor.window(0.1), monitor.stats()
        assert window.held_share < 0.1
        assert window.seconds == pytest.approx(0.1)
        assert 0 < window.looks < everything.looks
        assert everything.held_share > 0.3
        assert monitor.window(10).seconds < 10  # there was no more
        assert monitor.window(10).looks >= everything.looks
        assert abs(time.time() - monitor.window(0.1).since - 0.1) < 60


def test_keeps_no_more_looks_than_the_longest_window_has() -> None:
    with torchgil.GilMonitor(interval=0.001, max_window=0.05) as monitor:
        released.spin(0.3)
        window = monitor.window(0.05)
    assert window.looks <= 50
    assert monitor.stats().looks > window.looks


def test_begins_anew_at_each_start_and_after_reset() -> None:
    monitor = torchgil.GilMonitor(interval=0.001)
    assert monitor.stats().looks == 0
    assert math.isnan(monitor.stats().held_share)
    assert "no look" in str(monitor.stats())
    with monitor:
        released.spin(0.1)
        assert monitor.stats().looks > 0
        monitor.reset()
        assert monitor.stats().seconds < 0.1
    released.spin(0.05)
    stopped = monitor.stats()
    assert stopped.looks == monitor.stats().looks  # nothing is counted after the stop
    assert stopped.seconds < 0.1
    with monitor:
        assert monitor.stats().since > stopped.since


@pytest.mark.parametrize(("looks", "held_looks"), [(100, 50), (100, 0), (100, 100), (1, 1), (2000, 1400)])
def test_the_standard_error_is_that_of_independent_looks_and_never_none(looks: int, held_looks: int) -> None:
    share = held_looks / looks
    stats = MonitorStats(share, {"a": share}, looks, {"a": held_looks}, 1.0, 0.0)
    binomial = math.sqrt(share * (1 - share) / looks)
    assert 0 < stats.standard_error < 1
    assert stats.standard_error == pytest.approx(binomial, abs=1 / looks)
    assert stats.error_of(stats.threads["a"]) == stats.standard_error
    assert f"+- {100 * stats.standard_error:.1f}" in str(stats)


@pytest.mark.parametrize(
    "options",
    [{"interval": 0}, {"interval": "1"}, {"interval": True}, {"interval": 61}, {"max_window": 0.001}],
)
def test_rejects_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"GilMonitor: {next(iter(options))} must be from"):
        torchgil.GilMonitor(**options)
    for seconds in (0, -1, 301, float("nan"), "1"):
        with pytest.raises(ValueError, match="window: seconds must be from"):
            torchgil.GilMonitor().window(seconds)  # type: ignore[arg-type]


def test_starts_and_stops_any_number_of_times_and_leaves_no_thread() -> None:
    monitor = torchgil.GilMonitor()
    monitor.stop()
    for _ in range(200):
        monitor.start()
        monitor.stop()
        monitor.stop()
    assert not monitor.running
    monitor.start()
    while monitor.stats().looks == 0:  # or its thread has no name yet
        released.sleep(0.01)
    assert native_thread_names().count("torchgil-look") == 1
    with pytest.raises(RuntimeError, match="this GilMonitor is running already"):
        monitor.start()
    monitor.stop()
    assert gone()


def test_is_read_and_changed_by_many_threads_at_once() -> None:
    monitor = torchgil.GilMonitor(interval=0.0001)

    def use(i: int) -> None:
        for _ in range(50):
            if i == 0:
                monitor.stop()
            elif i == 1 and not monitor.running:
                monitor.start()
            elif i == 2:
                monitor.reset()
            else:
                stats = monitor.stats()
                assert sum(stats.held_looks.values()) <= stats.looks
                monitor.window(1)

    in_threads(use, 5)
    monitor.stop()
    assert gone()


def test_stops_at_interpreter_exit() -> None:
    run_in_child(
        """
        import threading, torchgil
        torchgil.GilMonitor(interval=0.0001).start()
        threading.Thread(target=torchgil.held.spin, args=(0.3,), daemon=True).start()
        """,
        whole_end=True,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_survives_fork() -> None:
    run_in_child(
        """
        import os, threading, torchgil, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        with torchgil.GilMonitor(interval=0.0001) as monitor:
            stop = threading.Event()
            def read():  # so that a fork meets the lock taken
                while not stop.is_set():
                    monitor.stats()
            reader = threading.Thread(target=read)
            reader.start()
            for _ in range(30):
                pid = os.fork()
                if pid == 0:
                    assert not monitor.running
                    assert monitor.stats().looks == 0
                    monitor.stop()
                    with monitor:
                        while monitor.stats().looks == 0:  # or this runs into its limit
                            torchgil.held.spin(0.01)
                    os._exit(7)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            stop.set()
            reader.join()
            assert monitor.running and monitor.stats().looks > 0
        """,
        timeout=100,
    )


class Looked:
    """A native monitor that finds the GIL held by one thread in nine of ten looks."""

    def __init__(self) -> None:
        self.takes = 0

    def take(self) -> tuple[int, float, list[tuple[str, int, int]]]:
        self.takes += 1
        return 10, 1.0, [("engine", 9, 3)]

    def reset(self) -> None:
        pass


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["reset", "stats", "Ctrl-C"])
def test_a_handler_at_any_step_of_stats_leaves_the_numbers_whole(what: str) -> None:
    def check(stats: MonitorStats, looks: set[int]) -> None:
        assert stats.looks in looks
        assert (stats.held_share, stats.collecting_share) == (pytest.approx(0.9), pytest.approx(0.3))
        assert stats.seconds == stats.looks / 10

    for step in itertools.count(1):
        with torchgil.GilMonitor(60) as monitor:
            pass
        session = monitor._last
        session._monitor = native = Looked()
        monitor.stats()
        act = {"reset": monitor.reset, "stats": monitor.stats, "Ctrl-C": interrupt}[what]
        at = At(step, act)
        try:
            during = at.run(monitor.stats)
        except KeyboardInterrupt:
            assert what == "Ctrl-C"
        else:
            check(during, {10, 20, 30})
        if not at.done:
            assert step > 10
            break
        check(monitor.stats(), {10, 20} if what == "reset" else {10 * native.takes})
        assert len(session._counted[1]) == 1  # nothing is kept for each call
