"""The Chrome trace is what Perfetto and chrome://tracing read: numbers, nesting, units, names; in pieces."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections import defaultdict
from itertools import pairwise

import pytest
import torch

import torchgil
from tests.tracing.test_report import ADD, MS, report
from torchgil.tracing._chrome import chrome_events, chrome_trace
from torchgil.tracing._recording import Kind, Recording, ThreadRecording
from torchgil.tracing._report import build_report

# How Perfetto makes nanoseconds of microseconds: in releases up to 2023, and since.
READERS = [lambda us: int(us * 1000.0), lambda us: int(us * 1000.0 + 0.5)]


def read(events, nanoseconds):
    """The slices of each lane, as a reader has them; fails where one of the format's rules is broken."""
    lanes = defaultdict(list)
    for event in events:
        assert 0 < event["tid"] < 2**31
        assert 0 < event["pid"] < 2**31
        if event["ph"] == "X":
            assert isinstance(event["name"], str)
            assert event["dur"] >= 0
            start = nanoseconds(event["ts"])
            lanes[event["tid"]].append((start, -nanoseconds(event["dur"]), event["name"]))
        else:
            assert event["ph"] == "M"
            assert event["name"] in ("thread_name", "thread_sort_index")
    for slices in lanes.values():
        slices.sort()
        ends = []
        for start, minus, name in slices:
            while ends and ends[-1] <= start:
                ends.pop()
            end = start - minus
            assert not ends or end <= ends[-1], f"{name} begins at {start} in a slice that ends before {end}"
            ends.append(end)
    return lanes


@pytest.mark.parametrize("nanoseconds", READERS)
@pytest.mark.parametrize("last", [None, 0.05])
def test_a_real_trace_of_several_threads_is_read_whole(tmp_path, nanoseconds, last):
    x = torch.ones(4, 4, requires_grad=True)

    def work():
        for _ in range(30):
            with torch.profiler.record_function("a block"):
                (x @ x).sum().backward()
            torchgil.held.spin(0.001)

    with torch.profiler.record_function("all of it"), torchgil.trace() as t:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = t.report(last=last)
    found.save_chrome_trace(tmp_path / "trace.json")
    data = json.loads((tmp_path / "trace.json").read_text())
    lanes = read(data["traceEvents"], nanoseconds)
    states = [s for s in found.segments if s]
    assert sum(map(len, lanes.values())) >= sum(map(len, states)) + sum(op.calls for op in found.ops)
    assert (data["displayTimeUnit"], data["schemaVersion"]) == ("ms", 1)


@pytest.mark.parametrize("nanoseconds", READERS)
@pytest.mark.parametrize("seed", range(20))
def test_slices_adjoin_and_nest_as_a_reader_adds_them_at_any_date(seed, nanoseconds):
    dice = random.Random(seed)
    times = sorted(dice.sample(range(10**6), 400))
    kinds, names, depth = [], [], 0
    for _ in times:
        kind = dice.choice(
            [Kind.ACQUIRE, Kind.RELEASE, Kind.OP_START, Kind.OP_END] if depth else [Kind.OP_START]
        )
        depth += {Kind.OP_START: 1, Kind.OP_END: -1}.get(kind, 0)
        kinds.append(kind)
        names.append(1 if kind == Kind.OP_START else 0)
    thread = ThreadRecording(1, 1, "t", [0] * 5 + times, [Kind.OP_START] * 5 + kinds, [1] * 5 + names, True)
    recording = Recording(
        pid=1,
        start_ns=0,
        stop_ns=10**6,
        complete_until_ns=10**6,
        dropped=0,
        unix_offset_ns=dice.randrange(16 * 10**17, 20 * 10**17),  # 2020 to 2033
        threads=(thread,),
        name_table=b"\0op\0",
    )
    lanes = read(list(chrome_events(build_report(recording))), nanoseconds)
    ops, states = sorted(lanes.values(), key=lambda slices: slices[0][2] != "op")
    assert len(ops) == 5 + sum(kind == Kind.OP_START for kind in kinds)
    for (start, minus, _), (following, _, _) in pairwise(states):
        assert 0 <= following - (start - minus) <= 2


def test_threads_without_a_number_of_their_own_have_lanes_of_their_own():
    one = report(ADD, ADD, ADD, ADD, ADD)
    numbers = [5, 5, 0, 0, 2**40]
    threads = [
        dataclasses.replace(thread, native_id=number)
        for thread, number in zip(one.recording.threads, numbers, strict=True)
    ]
    one = dataclasses.replace(one, recording=dataclasses.replace(one.recording, threads=tuple(threads)))
    events = list(chrome_events(one))
    lanes = {event["tid"] for event in events}
    assert len(lanes) == 10
    assert 5 in lanes
    read(events, READERS[1])


def test_names_are_escaped_and_half_a_character_is_none():
    one = report(ADD)
    (thread,) = one.recording.threads
    hostile = 'a "quoted"\n\\ name, \ud83d, é'
    one = dataclasses.replace(
        one,
        recording=dataclasses.replace(one.recording, threads=(dataclasses.replace(thread, name=hostile),)),
    )
    text = "".join(chrome_trace(one))
    assert "\\ud83d" not in text
    names = {e["args"]["name"] for e in json.loads(text)["traceEvents"] if e["name"] == "thread_name"}
    assert names == {'a "quoted"\n\\ name, ?, é', 'a "quoted"\n\\ name, ?, é: GIL'}


def test_it_comes_in_pieces_that_are_json_together():
    calls = ", ".join(f"{i} start aten::add, {i}.5 end aten::add" for i in range(5000))
    pieces = list(chrome_trace(report(calls, stop_ms=6000)))
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 300_000
    assert len(json.loads("".join(pieces))["traceEvents"]) > 5000
    empty = json.loads("".join(chrome_trace(report(stop_ms=1, complete_until_ns=MS))))
    assert empty["traceEvents"] == []
