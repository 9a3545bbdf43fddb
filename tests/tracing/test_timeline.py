"""The timeline: clock, ids and lanes as torch.profiler has them, and a picture that shows the states."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch

import torchgil
from tests.support.retries import once
from tests.tracing.test_report import ADD, MS, report
from torchgil.tracing._chrome import chrome_events


def test_each_thread_has_a_lane_of_ops_and_a_lane_of_states():
    events = list(chrome_events(report(ADD, "0 request, 50 acquire")))
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(names.values()) == ["thread 1", "thread 1: GIL", "thread 2", "thread 2: GIL"]
    slices = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == 1]
    assert slices == [("aten::add", 12_000, 38_000)]
    lane = next(tid for tid, name in names.items() if name == "thread 1: GIL")
    states = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == lane]
    assert states == [
        ("held", 0, 10_000),
        ("free", 10_000, 50_000),
        ("waiting", 60_000, 30_000),
        ("held", 90_000, 10_000),
    ]


def test_without_ops_only_the_states_are_written():
    events = chrome_events(report(ADD), ops=False)
    assert {e["cat"] for e in events if e["ph"] == "X"} == {"gil"}


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")  # torch 2.11
def test_clock_and_ids_are_those_of_torch_profilers_export(tmp_path):
    def calls(trace):
        return [e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] == "aten::mm"]

    pairs = []

    def the_clocks_agree():
        x = torch.ones(300, 300)
        with torch.profiler.profile() as profiler, torchgil.trace() as t:
            for _ in range(3):
                torch.mm(x, x)
        profiler.export_chrome_trace(str(tmp_path / "theirs.json"))
        t.report().save_chrome_trace(tmp_path / "ours.json")
        theirs = json.loads((tmp_path / "theirs.json").read_text())
        ours = json.loads((tmp_path / "ours.json").read_text())
        pairs.append((ours, theirs))
        for a, b in zip(calls(ours), calls(theirs), strict=True):
            # One callback runs right after the other, on clocks that are read differently.
            assert a["ts"] == pytest.approx(b["ts"], abs=200)
            assert a["dur"] == pytest.approx(b["dur"], abs=200)

    once(the_clocks_agree)
    for ours, theirs in pairs:
        assert ours["baseTimeNanoseconds"] == theirs["baseTimeNanoseconds"]
        ids = [{(e["pid"], e["tid"]) for e in calls(trace)} for trace in (ours, theirs)]
        assert ids == [{(os.getpid(), threading.get_native_id())}] * 2
        assert len(calls(ours)) == len(calls(theirs)) == 3


def test_the_picture_shows_held_and_free_where_they_were(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    path = tmp_path / "timeline.png"
    report("0 acquire, 50 release, 90 request, 95 acquire").plot(path)
    pixels = imread(path)[..., :3]
    red = (abs(pixels - (0xC0 / 255, 0x39 / 255, 0x2B / 255)) < 0.05).all(-1)
    green = (abs(pixels - (0x7F / 255, 0xBF / 255, 0x7B / 255)) < 0.05).all(-1)
    # Below the legend: held in the left half, free in the right.
    rows = slice(pixels.shape[0] // 3, None)
    middle = pixels.shape[1] // 2
    assert red[rows, :middle].sum() > 5 * red[rows, middle:].sum() > 0
    assert green[rows, middle:].sum() > 5 * green[rows, :middle].sum()


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'torchgil\[cli\]'"):
        report(ADD).plot(tmp_path / "x.png")


def test_many_threads_and_no_events_are_drawn_too(tmp_path):
    report(*[ADD] * 40, stop_ms=100).plot(tmp_path / "many.png")
    report(stop_ms=1, complete_until_ns=MS).plot(tmp_path / "none.png")
    assert (tmp_path / "many.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["", "\0", "a\ud800", "$x^^$", "one\ntwo", "\\", "x" * 100_000], ids=ascii)
def test_a_picture_of_threads_and_ops_of_any_name(tmp_path, name):
    thread = threading.Thread(target=torch.ones, args=(1,), name="odd")
    thread.name = name
    with torchgil.trace() as trace:
        thread.start()
        thread.join()
        with torch.profiler.record_function(name.encode(errors="replace").decode()):
            torchgil.released.spin(0.005)
    trace.report().plot(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 10_000
