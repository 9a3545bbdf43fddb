"""A report that was saved is loaded again, elsewhere too, and shows all that it showed."""

from __future__ import annotations

import base64
import copy
import gc
import itertools
import json
import os
import pickle
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from tests.tracing.kept import is_kept, views
from tests.tracing.test_odd_names import ODD
from tests.tracing.test_report import ADD, MS, report
from torchgil.tracing._recording import Kind, Recording, State, ThreadRecording
from torchgil.tracing._report import build_report

HELD = (
    "0 release, 5 start_held aten::linear, 20 collect 2, 40 collected, 58 end aten::linear, "
    "60 request, 70 acquire"
)


@pytest.fixture(scope="module")
def traced() -> torchgil.Report:
    """A real one: threads that have ended, ops, a block of its own, a collection, an odd name."""
    with torchgil.trace() as t:
        threads = [threading.Thread(target=torchgil.held.spin, args=(0.01,), name=n) for n in ("b", ODD)]
        for thread in threads:
            thread.start()
        with torch.profiler.record_function("a block"):
            torch.ones(50, 50, requires_grad=True).relu().sum().backward()
        gc.collect()
        for thread in threads:
            thread.join()
    return t.report()


def test_a_real_trace_is_kept_whole(traced):
    loaded = is_kept(traced)
    assert {ODD, "b"} <= {thread.name for thread in loaded.threads}
    assert loaded.collections.count
    assert {"aten::relu", "a block"} <= {op.name for op in loaded.ops}


def test_its_picture_is_the_same(traced, tmp_path):
    pytest.importorskip("matplotlib")
    traced.plot(tmp_path / "before.png")
    is_kept(traced).plot(tmp_path / "after.png")
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()


@pytest.mark.parametrize(
    "one",
    [
        report(),
        report(""),
        report(ADD, complete_until_ns=55 * MS, dropped=3, notes=("not redirected: libodd.so",)),
        report(ADD, HELD, gil_seen=False),
        report(ADD, has_gil=False, gil_seen=False, notes=("this Python runs without a GIL",)),
        report(ADD, stop_ms=10**9),
    ],
    ids=["no thread", "no event", "events dropped", "ops alone", "no GIL", "eleven days"],
)
def test_whatever_a_trace_could_not_see_is_kept(one):
    is_kept(one)


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "\ud800", ODD, "\u2028", '"\\', "x" * 300_000], ids=ascii)
def test_a_thread_of_any_name_is_kept(name):
    one = report(ADD)
    (thread,) = one.recording.threads
    loaded = is_kept(build_report(replace(one.recording, threads=(replace(thread, name=name),))))
    assert loaded.threads[0].name == loaded.recording.threads[0].name == name


def test_an_op_whose_name_is_no_text_is_kept():
    thread = ThreadRecording(1, 1, "t", [0, 5], [Kind.OP_START, Kind.OP_END], [1, 0], True)
    recording = Recording(1, 0, 9, 9, 0, 0, (thread,), b"\0\xffa\xc3\0")
    loaded = is_kept(build_report(recording))
    assert loaded.ops[0].name == "\ufffda\ufffd"
    assert loaded.recording.name_table == recording.name_table


def test_numbers_of_64_bits_and_a_state_from_before_the_trace_are_kept():
    thread = ThreadRecording(2**63 - 1, 2**31, "t", (), b"", (), True, State.WAIT)
    start_ns = 2**62
    end_ns = start_ns + 10**15
    recording = Recording(2**31, start_ns, end_ns, end_ns, 2**62, -(2**60), (thread,))
    loaded = is_kept(build_report(recording))
    assert loaded.threads[0].wait_s == pytest.approx(10**6)
    (kept,) = loaded.recording.threads
    assert (kept.ident, kept.native_id, kept.at_start) == (2**63 - 1, 2**31, State.WAIT)


def test_times_that_went_back_are_kept():
    times = [50, 40, 60]
    thread = ThreadRecording(1, 1, "t", times, [Kind.RELEASE, Kind.REQUEST, Kind.ACQUIRE], [0] * 3, True)
    loaded = is_kept(build_report(Recording(1, 0, 99, 99, 0, 0, (thread,))))
    assert list(loaded.recording.threads[0].times_ns) == times


def test_a_report_of_many_pieces_is_kept_and_takes_few_bytes_an_event(tmp_path):
    calls = ", ".join(f"{i} start aten::add, {i}.5 end aten::add" for i in range(9_000))
    one = report(calls, ADD, stop_ms=9_000)
    loaded = is_kept(one)
    one.save_json(tmp_path / "r.json")
    pieces = json.loads((tmp_path / "r.json").read_text())["timeline"]["threads"][0]["events"]
    assert len(pieces) == 2
    assert loaded.events > 18_000
    assert (tmp_path / "r.json").stat().st_size < 2 * loaded.events


def test_without_its_timeline_a_report_is_its_numbers_and_says_what_it_lacks(traced, tmp_path):
    traced.save_json(tmp_path / "numbers.json", timeline=False)
    assert json.loads((tmp_path / "numbers.json").read_text()) == traced.to_dict()
    loaded = torchgil.Report.load(tmp_path / "numbers.json")
    assert not loaded.has_timeline
    assert traced.has_timeline
    assert loaded == traced
    assert str(loaded) == str(traced)
    assert "<table" in loaded._repr_html_()
    assert "<svg" not in loaded._repr_html_()
    for what, use in {
        "plot": lambda: loaded.plot(tmp_path / "p.png"),
        "save_chrome_trace": lambda: loaded.save_chrome_trace(tmp_path / "t.json"),
        "span": lambda: loaded.span(1, 0, 1),
    }.items():
        with pytest.raises(ValueError, match=rf"^{what}: .* saved without its timeline, .*timeline=False"):
            use()
    assert os.listdir(tmp_path) == ["numbers.json"]
    is_kept(loaded)
    with pytest.raises(TypeError, match="save_json: timeline must be True or False, got 'no'"):
        traced.save_json(tmp_path / "r.json", timeline="no")


# Written by torchgil as it was before there was a version 2, of this recording.
VERSION_1 = Path(__file__).parent / "report_version_1.json"


def of_version_1() -> torchgil.Report:
    one = report(ADD, HELD, complete_until_ns=80 * MS, dropped=3, notes=("not redirected: libodd.so",))
    first, second = one.recording.threads
    threads = (replace(first, name="a\nb\ud800 é"), second)
    origins = {"aten::linear": "its kernel is Python, registered at x.py:1"}
    return build_report(replace(one.recording, pid=4711, threads=threads), origins.get)


def test_a_file_of_version_1_is_read_and_says_what_it_lacks():
    loaded, wanted = torchgil.Report.load(VERSION_1), of_version_1()
    assert loaded == wanted
    assert str(loaded) == str(wanted)
    assert loaded.to_dict() == wanted.to_dict()
    with pytest.raises(ValueError, match="saved without its timeline, by an older torchgil"):
        loaded.plot("nowhere.png")
    is_kept(loaded)


def test_a_file_of_version_1_has_all_that_one_of_today_has_but_the_timeline():
    assert json.loads(VERSION_1.read_text()) == {**of_version_1().to_dict(), "version": 1}


@pytest.mark.parametrize(
    "layout",
    [{"sort_keys": True}, {"separators": (",", ":")}, {"ensure_ascii": False, "indent": "\t"}],
    ids=["keys sorted", "no spaces", "not escaped"],
)
def test_a_file_that_another_program_has_laid_out_anew_is_the_same_report(layout, tmp_path):
    one = report(ADD, HELD)
    one.save_json(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    data["added by it"] = [{"": []}] * 20_000
    (tmp_path / "r.json").write_text(json.dumps(data, **layout), encoding="utf-8")
    assert views(torchgil.Report.load(tmp_path / "r.json")) == views(one)


def test_the_timeline_can_be_read_as_the_page_says(tmp_path):
    one = report(ADD, HELD)
    one.save_json(tmp_path / "r.json")
    timeline = json.loads((tmp_path / "r.json").read_text())["timeline"]

    def unpacked(pieces):
        return b"".join(zlib.decompress(base64.b64decode(piece)) for piece in pieces)

    table = unpacked(timeline["name_table"])
    for thread, recorded in zip(timeline["threads"], one.recording.threads, strict=True):
        data = unpacked(thread["events"])
        n = len(data) // 17
        times = itertools.accumulate(struct.unpack(f"<{n}q", data[: 8 * n]))
        kinds = data[8 * n : 9 * n]
        names = struct.unpack(f"<{n}q", data[9 * n :])
        assert (list(times), list(kinds)) == (recorded.times_ns, recorded.kinds)
        assert names == tuple(recorded.names)
        (op,) = (name for name, kind in zip(names, kinds, strict=True) if kind in (5, 6))
        assert table[op : table.index(b"\0", op)] in (b"aten::add", b"aten::linear")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_report_is_read_from_a_pipe(tmp_path):
    one = report(ADD)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=one.save_json, args=(tmp_path / "pipe",), daemon=True)
    writer.start()
    assert torchgil.Report.load(os.fsencode(tmp_path / "pipe")) == one
    writer.join(60)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_loaded_report_is_copied_and_pickled(traced, copied):
    loaded = copied(is_kept(traced))
    assert views(loaded) == views(traced)


def test_a_page_of_its_own_holds_what_a_notebook_shows(traced, tmp_path):
    traced.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert traced._repr_html_() in page


def test_it_is_loaded_where_there_is_no_torch_and_names_of_another_machine_are_data(traced, tmp_path):
    traced.save_json(tmp_path / "r.json")
    child = run_in_child(
        f"""
        import sys
        sys.modules["torch"] = sys.modules["torchgil._torch"] = None
        from torchgil import Report
        report = Report.load({str(tmp_path / "r.json")!r})
        report.save_chrome_trace({str(tmp_path / "t.json")!r})
        print(report)
        """,
        fresh=True,
    )
    assert child.stdout == f"{traced}\n"
    assert (tmp_path / "t.json").read_text() == views(traced)["chrome trace"]
