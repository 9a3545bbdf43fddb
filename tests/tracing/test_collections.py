"""A garbage collection is named by everything that sees a hold, and only where there was one."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

import torchgil
from tests.conftest import run_in_child, run_torchgil
from tests.tracing.loads import threads
from tests.tracing.reading import me
from torchgil import held, released
from torchgil.tracing import Report

pytest_plugins = ["pytester"]

OURS = "torchgil_sees_collections"
MEND = "gc.freeze()"


@pytest.fixture(scope="module")
def many_objects() -> Iterator[list[list[object]]]:
    """Enough for a full collection to last some 200 ms; none happens but those that a test asks for."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    objects: list[list[object]] = [[] for _ in range(600_000)]
    for each in objects:
        each.append(objects)
    yield objects
    for each in objects:
        each.clear()
    if enabled:
        gc.enable()


def plugin_is_installed() -> bool:
    return any(entry.name == "torchgil" for entry in metadata.entry_points(group="pytest11"))


def registered() -> int:
    return sum(getattr(callback, "__name__", "") == OURS for callback in gc.callbacks)


@pytest.mark.usefixtures("many_objects")
class TestEachOfTheFourNamesIt:
    def test_a_trace(self, tmp_path: Path) -> None:
        with torchgil.trace() as trace:
            released.spin(0.01)
            gc.collect()
            gc.collect(0)
        report = trace.report()
        (row,) = (t for t in report.threads if t.collections.count)
        assert (row, row.collections) == (me(report), report.collections)
        seen = report.collections
        assert (seen.count, seen.generation) == (2, 2)
        assert 0.02 < seen.longest_s <= seen.wall_s
        assert seen.held_s > 0.9 * seen.wall_s
        assert seen.held_s <= row.held_s
        assert row.longest_hold_s >= 0.9 * seen.longest_s
        for text in (str(report), report._repr_html_()):
            assert "2 garbage collections, " in text
            assert MEND in text
        assert report.to_dict()["collections"]["longest_s"] == seen.longest_s
        report.save_json(tmp_path / "report.json")
        saved = json.loads((tmp_path / "report.json").read_text())
        assert [t["collections"]["generation"] for t in saved["threads"] if t["collections"]["count"]] == [2]

    def test_an_audit(self) -> None:
        def call() -> None:
            released.sleep(0.02)
            gc.collect()

        record = torchgil.audit(call)
        assert (record.collections.count, record.collections.generation) == (1, 2)
        assert record.collections.wall_s <= record.wall_s
        assert "in it: a garbage collection of generation 2, " in str(record)
        assert MEND in str(record)
        assert record.verdict == "holds"  # what was measured stays as it was

    def test_an_audit_of_a_call_that_had_to_wait_for_one_of_another_thread(self) -> None:
        begin, done = threading.Event(), threading.Event()

        def collect() -> None:
            begin.wait()
            gc.collect()
            done.set()

        def call() -> None:
            begin.set()
            done.wait()

        with threads(1, collect):
            record = torchgil.audit(call)
        assert record.collections.count == 0
        assert record.collections_elsewhere.generation == 2
        assert "in other threads meanwhile: a garbage collection of generation 2" in str(record)

    def test_a_watchdog(self) -> None:
        with torchgil.Watchdog(threshold=0.02, on_hold=lambda hold: None) as watchdog:
            gc.collect()
        hold = max(watchdog.holds, key=lambda hold: hold.duration_s)
        assert (hold.collections.count, hold.collections.generation) == (1, 2)
        assert 0.5 * hold.duration_s < hold.collections.wall_s <= hold.duration_s
        assert "(a garbage collection of generation 2, " in str(hold)
        assert MEND in str(hold)

    def test_a_monitor(self) -> None:
        with torchgil.GilMonitor(interval=0.001) as monitor, threads(1, gc.collect, "collects"):
            pass
        for stats in (monitor.stats(), monitor.window(300)):
            assert 0 < stats.collecting_share <= stats.held_share
            assert list(stats.collecting_threads) == ["collects-0"]
            assert stats.collecting_looks["collects-0"] <= stats.held_looks["collects-0"]
            assert "garbage collections had " in str(stats)
            assert MEND in str(stats)


@pytest.mark.usefixtures("many_objects")
class TestNobodyNamesOneThatDidNotHappen:
    def test_a_trace(self) -> None:
        with torchgil.trace() as trace:
            held.spin(0.05)
        report = trace.report()
        assert report.collections.count == 0
        assert "garbage" not in str(report) + str(report.hints) + report._repr_html_()

    def test_an_audit(self) -> None:
        record = torchgil.audit(held.spin, 0.05)
        assert record.collections.count == record.collections_elsewhere.count == 0
        assert "garbage" not in str(record)

    def test_a_watchdog_though_there_was_one_just_before(self) -> None:
        with torchgil.Watchdog(threshold=0.02, on_hold=lambda hold: None) as watchdog:
            gc.collect()
            released.sleep(0.05)
            held.sleep(0.3)
        holds = [hold for hold in watchdog.holds if "held.sleep(0.3)" in str(hold)]
        assert holds, watchdog.holds
        for hold in holds:
            assert hold.collections.count == 0
            assert "garbage" not in str(hold)

    def test_a_monitor(self) -> None:
        with torchgil.GilMonitor(interval=0.001) as monitor:
            gc.collect()
            monitor.reset()
            held.spin(0.1)
        stats = monitor.stats()
        assert stats.held_looks["MainThread"] > 0
        assert (stats.collecting_share, stats.collecting_threads, stats.collecting_looks) == (0, {}, {})
        assert "garbage" not in str(stats)

    def test_a_monitor_where_others_hold_the_gil_that_a_finalizer_let_go(self) -> None:
        class Slow:
            def __init__(self) -> None:
                self.myself = self

            def __del__(self) -> None:
                released.sleep(0.1)

        def collect() -> None:
            Slow()
            gc.collect(0)

        with torchgil.GilMonitor(interval=0.001) as monitor, threads(1, collect, "collects"):
            time.sleep(0.02)
            held.spin(0.05)
        stats = monitor.stats()
        assert stats.held_looks["MainThread"] > 10
        assert "MainThread" not in stats.collecting_threads


def test_what_a_collection_frees_is_told_from_the_calls_own_releases() -> None:
    def call() -> None:
        released.sleep(0.02)
        rows: list[list[object]] = [[torch.ones(1)] for _ in range(500)]
        for row in rows:
            row.append(row)
        del row, rows
        gc.collect()

    record = torchgil.audit(call)
    assert record.releases >= 501
    assert 500 <= record.collections.releases <= record.releases - 1
    assert f"{record.collections.releases} of the releases" in str(record)
    assert record.free_s + record.held_s + record.wait_s + record.preempted_s == pytest.approx(record.wall_s)


def test_a_finalizer_that_lets_the_gil_go_is_within_the_collection_and_not_held() -> None:
    class Slow:
        def __init__(self) -> None:
            self.myself = self

        def __del__(self) -> None:
            released.sleep(0.05)

    Slow()
    record = torchgil.audit(gc.collect)
    assert record.collections.wall_s > 0.04
    assert record.collections.free_s > 0.04
    assert record.collections.held_s < record.collections.wall_s - 0.04
    assert record.collections.free_s <= record.free_s


def test_one_that_is_in_progress_at_the_end_counts_until_then() -> None:
    amid, go_on = threading.Event(), threading.Event()

    class Waits:
        def __init__(self) -> None:
            self.myself = self

        def __del__(self) -> None:
            amid.set()
            go_on.wait()

    def collect() -> None:
        Waits()
        gc.collect()

    trace = torchgil.trace().start()
    with threads(1, collect, "collects"):
        amid.wait()
        released.sleep(0.05)
        trace.stop()
        go_on.set()
    for report in (trace.report(), trace.report(last=0.02)):
        (row,) = (t for t in report.threads if t.collections.count)
        assert row.name == "collects-0"
        assert 0.015 < row.collections.wall_s <= report.wall_s
    assert trace.report(last=0.02).collections.wall_s < 0.021


def test_python_code_of_other_callbacks_does_not_disturb() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        released.spin(0.001)

    gc.callbacks.insert(0, callback)
    gc.callbacks.append(callback)
    try:
        report = torchgil.audit(gc.collect).report
    finally:
        gc.callbacks.remove(callback)
        gc.callbacks.remove(callback)
    assert report.collections.count == 1


def test_it_stands_in_gc_callbacks_as_long_as_somebody_wants_to_know() -> None:
    before = list(gc.callbacks)
    assert registered() == 0
    with torchgil.Watchdog(on_hold=lambda hold: None), torchgil.trace():
        assert registered() == 1
        with torchgil.GilMonitor() as monitor:
            assert registered() == 1
            gc.callbacks[:] = before
            monitor.stats()
            assert registered() == 1  # a monitor runs for weeks: it looks after it
        with torchgil.Watchdog(on_hold=lambda hold: None):
            assert registered() == 1
        assert registered() == 1
    assert gc.callbacks == before


def test_a_program_that_clears_gc_callbacks_is_told_so_and_nothing_breaks() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        pass

    with torchgil.trace() as trace:
        gc.collect()
        gc.callbacks.clear()
        gc.callbacks.append(callback)
        gc.collect()
    assert gc.callbacks == [callback]
    gc.callbacks.clear()
    report = trace.report()
    assert report.collections.count == 1
    assert any("gc.callbacks was changed" in note for note in report.notes)
    assert not any("gc.callbacks" in note for note in torchgil.audit(gc.collect).report.notes)


def test_whoever_calls_what_stands_there_with_anything_does_no_harm() -> None:
    with torchgil.trace() as trace:
        (ours,) = (callback for callback in gc.callbacks if getattr(callback, "__name__", "") == OURS)
        for arguments in [(), ("start",), ("start", {}), ("start", 1), (1, 2), ("stop", {}), ("else", {})]:
            assert ours(*arguments) is None
        ours("start", {"generation": "x"})
        ours("start", {"generation": 1 << 70})
        assert ours.__module__ is None or isinstance(ours.__module__, str)
    ours("start", {"generation": 2})
    assert trace.report().collections.count == 0
    assert registered() == 0


def test_a_child_of_a_fork_has_it_no_more_and_can_begin_anew() -> None:
    run_in_child(
        """
        import gc, os, sys
        import torchgil

        count = lambda: sum(getattr(c, "__name__", "") == "torchgil_sees_collections" for c in gc.callbacks)
        trace = torchgil.trace().start()
        monitor = torchgil.GilMonitor()
        monitor.start()
        with torchgil.Watchdog():
            assert count() == 1
            child = os.fork()
            if not child:
                assert count() == 0, gc.callbacks
                monitor.stop()
                assert torchgil.audit(gc.collect).collections.count == 1
                assert count() == 0
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        monitor.stop()
        assert count() == 1
        trace.stop()
        assert count() == 0
        """
    )


def test_a_process_may_end_with_a_trace_that_runs() -> None:
    child = run_in_child("import torchgil\ntrace = torchgil.trace().start()\nprint('ends')", whole_end=True)
    assert child.stdout.strip() == "ends"


def test_the_youngest_ones_count_as_well() -> None:
    def call() -> Report:
        with torchgil.trace() as trace:
            for _ in range(50):
                gc.collect(0)
        return trace.report()

    enabled = gc.isenabled()
    gc.disable()
    try:
        seen = call().collections
    finally:
        if enabled:
            gc.enable()
    assert (seen.count, seen.generation) == (50, 0)


def test_the_command_and_its_file_say_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import gc\n"
        "gc.disable()\n"
        "rows = [[] for _ in range(2_000_000)]\n"
        "for row in rows: row.append(rows)\n"
        "gc.collect()\n"
    )
    done = run_torchgil("audit", "--json", tmp_path / "out.json", "--fail-if-held", "30ms", script)
    assert done.exit_code == 3, done
    assert "a garbage collection of generation 2, " in done.stderr
    assert MEND in done.stderr
    assert "script.py:5 in <module>: gc.collect()" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["collections"]["generation"] == 2


def test_the_plugin_says_so_where_a_test_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        """
        import gc
        import pytest
        import torchgil

        gc.disable()
        ROWS = [[] for _ in range(600_000)]
        for row in ROWS:
            row.append(ROWS)

        @pytest.mark.releases_gil(min_free=0.9)
        def test_it():
            torchgil.released.sleep(0.02)
            gc.collect()
        """
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    options = [] if plugin_is_installed() else ["-p", "torchgil.pytest_plugin"]
    result = pytester.runpytest_subprocess(*options, timeout=240)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "in it: a garbage collection of generation 2, *Of the other*was free",
            f"hint: {MEND}*",
            "line MainThread held the GIL*(a garbage collection of generation 2, *",
        ]
    )
