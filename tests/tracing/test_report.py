"""States and ops become numbers."""

from __future__ import annotations

import json

import pytest

from torchgil._formatting import duration
from torchgil.tracing._figures import verdict_of
from torchgil.tracing._holding import Holds, holders_meanwhile
from torchgil.tracing._recording import Kind, Recording, State, ThreadRecording
from torchgil.tracing._report import build_report
from torchgil.tracing._segments import Segments

MS = 1_000_000
NAMES = b"\0aten::add\0aten::linear\0Torch-Compiled Region: 0/0\0"
OFFSET = {
    name: NAMES.index(name.encode()) for name in ("aten::add", "aten::linear", "Torch-Compiled Region: 0/0")
}
KINDS = {
    "release": Kind.RELEASE,
    "forced": Kind.FORCED_RELEASE,
    "request": Kind.REQUEST,
    "acquire": Kind.ACQUIRE,
    "start": Kind.OP_START,
    "start_held": Kind.OP_START_HELD,
    "end": Kind.OP_END,
    "thread_end": Kind.THREAD_END,
    "collect": Kind.COLLECTION_START,
    "collected": Kind.COLLECTION_END,
}


def report(*threads: str, stop_ms: int = 100, **more):
    """From lines such as "0 acquire, 10 release, 20 start aten::add, 90 collect 2": times in ms."""
    recorded = []
    for i, text in enumerate(threads, 1):
        events = [event.split(maxsplit=2) for event in text.split(", ") if event]
        recorded.append(
            ThreadRecording(
                ident=i,
                native_id=i,
                name=f"thread {i}",
                times_ns=[round(float(e[0]) * MS) for e in events],
                kinds=[KINDS[e[1]] for e in events],
                names=[(OFFSET.get(e[2]) or int(e[2])) if e[2:] else 0 for e in events],
                known_at_start=True,
            )
        )
    values = {"complete_until_ns": stop_ms * MS, "dropped": 0, **more}
    return build_report(
        Recording(
            pid=1,
            start_ns=0,
            stop_ns=stop_ms * MS,
            unix_offset_ns=0,
            threads=tuple(recorded),
            name_table=NAMES,
            **values,
        )
    )


ADD = "0 acquire, 10 release, 12 start aten::add, 50 end aten::add, 60 request, 90 acquire"


def test_the_four_parts_of_a_threads_time_and_their_extremes():
    (t,) = report(ADD).threads
    assert (t.wall_s, t.free_s, t.held_s, t.wait_s, t.preempted_s) == pytest.approx(
        (0.1, 0.05, 0.02, 0.03, 0)
    )
    assert (t.releases, t.longest_hold_s, t.longest_wait_s) == (1, pytest.approx(0.01), pytest.approx(0.03))


def test_an_op_gets_its_own_time_and_the_wait_of_its_window():
    (op,) = report(ADD).ops
    assert (op.name, op.calls, op.calls_held, op.verdict) == ("aten::add", 1, 0, "releases")
    assert (op.wall_s, op.free_s, op.held_s, op.wait_s) == pytest.approx((0.038, 0.038, 0, 0.03))


def test_the_wait_of_a_window_without_an_op_is_no_ops():
    r = report(
        "0 acquire, 1 release, 2 start aten::add, 3 end aten::add, 4 request, 5 acquire, "
        "6 release, 7 request, 27 acquire"
    )
    assert r.ops[0].wait_s == pytest.approx(0.001)
    assert r.threads[0].waits_after == {"": pytest.approx(0.02), "aten::add": pytest.approx(0.001)}


def test_the_wait_of_a_window_of_several_ops_is_the_last_outermost_ones():
    r = report(
        "0 acquire, 1 release, 2 start aten::add, 3 end aten::add, "
        "4 start aten::linear, 5 start aten::add, 6 end aten::add, 7 end aten::linear, 8 request, 28 acquire"
    )
    waits = {op.name: op.wait_s for op in r.ops}
    assert waits == {"aten::add": 0, "aten::linear": pytest.approx(0.02)}


def test_an_op_that_takes_the_gil_inside_and_holds_it():
    (op,) = report(
        "0 acquire, 10 release, 11 start aten::add, 20 request, 25 acquire, 65 release, 70 end aten::add, "
        "71 request, 72 acquire"
    ).ops
    assert (op.free_s, op.wait_s, op.held_s) == pytest.approx((0.014, 0.005 + 0.001, 0.04), abs=1e-9)
    assert op.longest_hold_s == pytest.approx(0.04)
    assert op.verdict == "partly"


def test_an_op_entered_with_the_gil_held_holds_it():
    (op,) = report("0 acquire, 10 start_held aten::add, 60 end aten::add").ops
    assert (op.calls_held, op.verdict, op.longest_hold_s) == (1, "holds", pytest.approx(0.05))


def test_an_op_inside_a_call_of_itself_counts_as_a_call_and_its_time_once():
    (op,) = report(
        "0 acquire, 0 release, 10 start aten::add, 20 start aten::add, 30 end aten::add, 40 end aten::add"
    ).ops
    assert (op.calls, op.wall_s) == (2, pytest.approx(0.03))


def test_an_op_still_running_at_the_end_counts_until_then_and_a_stray_end_not_at_all():
    r = report("0 acquire, 1 end aten::linear, 10 start_held aten::add")
    assert [(op.name, op.calls, op.wall_s) for op in r.ops] == [("aten::add", 1, pytest.approx(0.09))]


def test_preemption_is_not_counted_as_free():
    (t,) = report("0 acquire, 10 forced, 11 request, 60 acquire").threads
    assert (t.free_s, t.preempted_s, t.releases) == (0, pytest.approx(0.05), 0)


def test_the_last_release_of_a_thread_that_ends_is_no_window():
    (t,) = report("0 acquire, 10 release, 20 request, 21 acquire, 30 release, 31 thread_end").threads
    assert t.releases == 1


def test_what_was_dropped_is_said_and_the_numbers_stop_there():
    r = report(ADD, complete_until_ns=55 * MS, dropped=3)
    assert (r.dropped, r.covered_s, r.threads[0].wall_s) == (3, pytest.approx(0.055), pytest.approx(0.055))
    assert "3 events were dropped" in str(r)


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(0.9, "releases"), (0.899, "partly"), (0.101, "partly"), (0.1, "holds"), (0, "holds")],
)
def test_the_verdict_at_its_boundaries(free, verdict):
    assert verdict_of(free, 1.0) == verdict


def test_without_a_gil_witness_ops_are_judged_by_how_they_were_entered():
    text = "1 start aten::add, 2 end aten::add, 3 start_held aten::linear, 4 end aten::linear"
    r = report(text, gil_seen=False)
    assert {op.name: op.verdict for op in r.ops} == {"aten::add": "releases", "aten::linear": "holds"}
    assert r.hints == ()
    assert {op.verdict for op in report(text, gil_seen=False, has_gil=False).ops} == {"no GIL"}


def test_hints_name_the_op_that_was_waited_after_and_the_mend():
    (hint,) = report("0 acquire, 1 release, 2 start aten::add, 3 end aten::add, 4 request, 80 acquire").hints
    assert hint.startswith("76 % of thread 1's time went into waiting for the GIL back after aten::add")
    assert "torchgil.nogil" in hint
    assert "torchgil.gil_priority()" in hint


def test_a_waiting_thread_says_who_held_the_gil_meanwhile():
    r = report(
        "0 release, 10 start aten::add, 19 end aten::add, 20 request, 90 acquire",
        "0 acquire, 25 release, 26 request, 60 acquire, 89 release",
        "0 request, 30 acquire, 55 release",
    )
    waiting = next(t for t in r.threads if t.name == "thread 1")
    assert waiting.waits_for == {"thread 2": pytest.approx(0.034), "thread 3": pytest.approx(0.025)}
    one = report(
        "0 release, 10 start aten::add, 19 end aten::add, 20 request, 90 acquire", "0 acquire, 89 release"
    )
    assert "most of it while thread 2 held it" in one.hints[0]


def test_hints_name_an_op_that_held_and_a_compiled_region_that_did():
    (hint,) = report("0 acquire, 10 start_held aten::add, 60 end aten::add").hints
    assert hint.startswith("aten::add held the GIL for up to 50.0 ms")
    region = "Torch-Compiled Region: 0/0"
    (hint,) = report(f"0 acquire, 10 start_held {region}, 60 end {region}").hints
    assert "cpp_wrapper" in hint


def test_a_quiet_trace_gives_no_hint():
    assert (
        report("0 acquire, 10 release, 12 start aten::add, 90 end aten::add, 91 request, 91.1 acquire").hints
        == ()
    )


def test_the_tables_are_sorted_by_what_hurts():
    text = str(
        report(
            "0 acquire, 1 release, 2 start aten::add, 3 end aten::add, 4 request, 5 acquire, "
            "10 start_held aten::linear, 60 end aten::linear"
        )
    )
    assert text.index("aten::linear") < text.index("aten::add")


def test_json_has_a_version_and_all_numbers(tmp_path):
    r = report(ADD)
    r.save_json(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "r.json").read_text() == json.dumps(data, indent=1) + "\n"
    assert data.pop("timeline")["stop_ns"] == 100 * MS
    assert data == r.to_dict()
    assert (data["format"], data["version"]) == ("torchgil-trace", 2)
    assert data["threads"][0]["wait_s"] == pytest.approx(0.03)
    assert data["ops"][0]["name"] == "aten::add"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (2e-9, "2 ns"),
        (0.9999e-6, "1.00 us"),
        (1e-6, "1.00 us"),
        (9.996e-3, "10.0 ms"),
        (99.96, "100 s"),
    ],
)
def test_durations_have_three_digits(seconds, text):
    assert duration(seconds) == text


def test_who_held_meanwhile_is_looked_up_not_searched_for_from_the_start():
    steps = 0

    class Counted(list):
        def __getitem__(self, at):
            nonlocal steps
            steps += 1
            return super().__getitem__(at)

    n = 1000
    holds = Holds(Counted(range(0, 10 * n, 10)), Counted(range(4, 10 * n, 10)), Counted([0] * n))
    waits = Segments()
    for i in range(n):
        waits.add(10 * i, State.WAIT)
        waits.add(10 * i + 9, State.FREE)
    holder = ThreadRecording(1, 1, "holder", [], b"", [], True)
    found = holders_meanwhile(waits.close(10 * n), holds, [holder])
    assert found == {"holder": pytest.approx(4 * n * 1e-9)}
    assert 0 < steps < 30 * n  # from the start each time: n * n / 2
