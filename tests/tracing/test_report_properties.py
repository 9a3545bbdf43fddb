"""Whatever was recorded, in whatever order: a report's numbers add up, and none is negative."""

from __future__ import annotations

import os
import random
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracing.kept import is_kept
from torchgil.tracing._recording import Kind, Recording, ThreadRecording
from torchgil.tracing._report import build_report
from torchgil.tracing._states import since

NAMES = b"\0aten::add\0aten::mm\0"
OFFSETS = [NAMES.index(name) for name in (b"aten::add", b"aten::mm")]
EXAMPLES = int(os.environ.get("TORCHGIL_STRESS_EXAMPLES", "60"))
END_NS = 1000

KINDS = [kind for kind in Kind if kind is not Kind.THREAD_END]  # nothing comes after that one
event = st.tuples(st.integers(0, END_NS), st.sampled_from(KINDS), st.sampled_from(OFFSETS))
thread = st.tuples(st.lists(event, max_size=25), st.booleans())


def recorded(drawn: list, complete_until_ns: int) -> Recording:
    # Two acquire at one time on no machine; which of them had it last would be the order of the threads.
    times = random.Random(0).sample(range(END_NS * 200), sum(len(events) for events, _ in drawn))
    times = iter(sorted(times))
    moments = sorted((e[0], i, at) for i, (events, _) in enumerate(drawn) for at, e in enumerate(events))
    exact = {(i, at): next(times) for _, i, at in moments}
    threads = []
    for i, (events, known) in enumerate(drawn):
        order = sorted(range(len(events)), key=lambda at, i=i: exact[i, at])
        threads.append(
            ThreadRecording(
                ident=i + 1,
                native_id=i + 1,
                name=f"thread {i}",
                times_ns=[exact[i, at] for at in order],
                kinds=[events[at][1] for at in order],
                names=[events[at][2] if "OP_" in events[at][1].name else 0 for at in order],
                known_at_start=known,
            )
        )
    return Recording(
        pid=1,
        start_ns=0,
        stop_ns=END_NS * 200,
        unix_offset_ns=0,
        threads=tuple(threads),
        name_table=NAMES,
        complete_until_ns=complete_until_ns * 200,
        dropped=int(complete_until_ns < END_NS),
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(thread, max_size=5), st.sampled_from([END_NS, END_NS // 2]), st.randoms(use_true_random=False)
)
def test_the_parts_add_up_none_is_negative_and_the_order_of_threads_is_nothing(drawn, complete, dice):
    recording = recorded(drawn, complete)
    report = build_report(recording)
    for row in report.threads:
        parts = row.free_s, row.held_s, row.wait_s, row.preempted_s
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(row.wall_s, abs=1e-12)
        assert 0 <= row.longest_hold_s <= row.held_s + 1e-12
        assert 0 <= row.longest_wait_s <= row.wait_s + 1e-12
        assert row.releases >= 0
        assert row.wall_s <= report.covered_s + 1e-12
        collected = row.collections
        assert 0 <= collected.held_s <= row.held_s + 1e-12
        assert 0 <= collected.free_s <= row.free_s + 1e-12
        assert collected.held_s + collected.free_s <= collected.wall_s + 1e-12
        assert 0 <= collected.longest_s <= collected.wall_s + 1e-12 <= row.wall_s + 2e-12
        assert collected.releases <= row.releases + 1  # the last release of a thread that ends is none
        assert (collected.count > 0) == (collected.wall_s > 0) == (collected.generation is not None)
    assert report.collections.count == sum(row.collections.count for row in report.threads)
    assert report.collections.held_s <= report.covered_s + 1e-12
    assert sum(row.held_s for row in report.threads) <= report.covered_s + 1e-12  # one at a time
    for op in report.ops:
        assert min(op.wall_s, op.free_s, op.held_s, op.wait_s, op.longest_hold_s) >= 0
        assert op.free_s + op.held_s <= op.wall_s + 1e-12
        assert 0 <= op.calls_held <= op.calls
    str(report), report.to_dict(), report.hints

    mixed = list(recording.threads)
    dice.shuffle(mixed)
    other = build_report(replace(recording, threads=tuple(mixed)))

    def rows(of):
        threads = {row.ident: asdict(row) for row in of.threads}
        ops = {op.name: asdict(op) for op in of.ops}
        return pytest.approx(flat(threads), abs=1e-12), pytest.approx(flat(ops), abs=1e-12)

    assert flat({row.ident: asdict(row) for row in other.threads}) == rows(report)[0]
    assert flat({op.name: asdict(op) for op in other.ops}) == rows(report)[1]


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(thread, max_size=5),
    st.sampled_from([END_NS, END_NS // 2]),
    st.integers(0, END_NS * 200),
    st.lists(st.text(max_size=8), min_size=5, max_size=5),
    st.booleans(),
)
def test_what_was_saved_is_loaded_and_shows_all_that_it_showed(drawn, complete, start_ns, names, gil_seen):
    recording = recorded(drawn, complete)
    threads = (replace(t, name=name) for t, name in zip(recording.threads, names, strict=False))
    recording = since(replace(recording, threads=tuple(threads), gil_seen=gil_seen), start_ns)
    is_kept(build_report(recording, lambda name: f"from where {name} is"))


def flat(of: dict) -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}; what is no number as its text."""
    found: dict = {}
    for key, value in of.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": number for inner, number in flat(value).items()}
        else:
            found[str(key)] = value if isinstance(value, float | int) else hash(str(value))
    return found
