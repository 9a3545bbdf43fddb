"""Events become states: what a thread was before, within and after what was seen of it."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise

import pytest

from torchgil.tracing._recording import Kind, Recording, State, ThreadRecording
from torchgil.tracing._states import states_of

REL, FORCED, REQ, ACQ = Kind.RELEASE, Kind.FORCED_RELEASE, Kind.REQUEST, Kind.ACQUIRE
FREE, WAIT, HELD, PREEMPTED = State.FREE, State.WAIT, State.HELD, State.PREEMPTED


def thread(*events: tuple[int, int], known: bool = True, native_id: int = 1) -> ThreadRecording:
    times = [t for t, _ in events]
    kinds = [k for _, k in events]
    return ThreadRecording(native_id, native_id, f"t{native_id}", times, kinds, [0] * len(events), known)


def recording(*threads: ThreadRecording, end: int = 100, **more: int) -> Recording:
    values = {"start_ns": 0, "stop_ns": end, "complete_until_ns": end, "dropped": 0, **more}
    return Recording(pid=1, unix_offset_ns=0, threads=threads, **values)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([], [(0, 100, FREE)], id="no event: in a window all along"),
        pytest.param([(40, ACQ)], [(0, 40, WAIT), (40, 100, HELD)], id="was waiting when it started"),
        pytest.param(
            [(40, REQ), (50, ACQ)], [(0, 40, FREE), (40, 50, WAIT), (50, 100, HELD)], id="was in a window"
        ),
        pytest.param([(40, REL)], [(0, 40, HELD), (40, 100, FREE)], id="held; its window is open at the end"),
        pytest.param([(0, ACQ), (40, REL), (70, REQ)], [(0, 40, HELD), (40, 70, FREE), (70, 100, WAIT)]),
        pytest.param(
            [(0, ACQ), (40, FORCED), (41, REQ), (60, ACQ)],
            [(0, 40, HELD), (40, 60, PREEMPTED), (60, 100, HELD)],
            id="a forced switch is no window, and its wait is part of it",
        ),
        pytest.param(
            [(0, ACQ), (40, REL), (60, Kind.THREAD_END)], [(0, 40, HELD), (40, 60, FREE)], id="ends"
        ),
    ],
)
def test_one_threads_events_become_adjoining_states(events, expected):
    assert states_of(recording(thread(*events))) == [expected]


def test_a_thread_born_in_the_trace_begins_at_its_first_event():
    assert states_of(recording(thread((30, REQ), (35, ACQ), known=False))) == [
        [(30, 35, WAIT), (35, 100, HELD)]
    ]


def test_a_native_thread_without_gil_events_is_free_and_one_without_events_is_not_there():
    native = thread((10, Kind.OP_START), (20, Kind.OP_END), known=False)
    assert states_of(recording(native, thread(known=False))) == [[(10, 100, FREE)], []]


def test_nothing_is_claimed_after_the_first_event_dropped():
    t = thread((0, ACQ), (40, REL), (70, REQ))
    assert states_of(recording(t, complete_until_ns=60)) == [[(0, 40, HELD), (40, 60, FREE)]]


def test_of_two_that_claim_to_hold_the_last_to_acquire_does():
    a = thread((0, ACQ), native_id=1)
    b = thread((20, REQ), (30, ACQ), (50, REL), native_id=2)
    assert states_of(recording(a, b)) == [
        [(0, 30, HELD), (30, 50, PREEMPTED), (50, 100, HELD)],
        [(0, 20, FREE), (20, 30, WAIT), (30, 50, HELD), (50, 100, FREE)],
    ]


def test_of_three_nested_claims_each_goes_back_to_the_one_before():
    a = thread((0, ACQ), native_id=1)
    b = thread((10, ACQ), (60, REL), native_id=2)
    c = thread((20, ACQ), (40, REL), native_id=3)
    states = states_of(recording(a, b, c))
    assert states[0] == [(0, 10, HELD), (10, 60, PREEMPTED), (60, 100, HELD)]
    assert states[1] == [(0, 10, WAIT), (10, 20, HELD), (20, 40, PREEMPTED), (40, 60, HELD), (60, 100, FREE)]


def test_a_claim_that_ends_while_preempted_stays_preempted():
    a = thread((0, ACQ), (30, REL), native_id=1)
    b = thread((10, ACQ), (50, REL), native_id=2)
    assert states_of(recording(a, b))[0] == [(0, 10, HELD), (10, 30, PREEMPTED), (30, 100, FREE)]


@pytest.mark.parametrize("seed", range(50))
def test_states_adjoin_add_up_and_at_most_one_thread_holds_at_any_time(seed):
    dice = random.Random(seed)
    times_of_all = dice.sample(range(1, 1000), 120)
    threads = []
    for i in range(4):
        times = sorted(times_of_all[i::4])
        kinds = [(ACQ, REL, REQ)[n % 3] for n in range(30)]
        threads.append(thread(*zip(times, kinds, strict=True), native_id=i))
    states = states_of(recording(*threads, end=1000))
    for segments in states:
        assert segments[0][0] == 0
        assert segments[-1][1] == 1000
        assert all(a[1] == b[0] and a[2] is not b[2] for a, b in pairwise(segments))
    for t in range(1000):
        holders = [i for i, s in enumerate(states) if any(a <= t < b and st is HELD for a, b, st in s)]
        claims = [
            (max(a for a in _acquired(threads[i]) if a <= t), i) for i in range(4) if _claims(threads[i], t)
        ]
        assert holders == ([max(claims)[1]] if claims else [])


def _acquired(t: ThreadRecording) -> list[int]:
    return [time for time, kind in zip(t.times_ns, t.kinds, strict=True) if kind == ACQ]


def _claims(t: ThreadRecording, at: int) -> bool:
    before = [kind for time, kind in zip(t.times_ns, t.kinds, strict=True) if time <= at]
    return bool(before) and before[-1] == ACQ


def test_events_are_read_from_pairs_of_integers():
    raw = array("q", [10, ACQ, 20, 5 << 8 | Kind.OP_START, 30, 5 << 8 | Kind.OP_END]).tobytes()
    t = ThreadRecording.from_bytes(7, 8, "x", [raw[:16], raw[16:]], True)
    assert (list(t.times_ns), list(t.kinds), list(t.names)) == ([10, 20, 30], [4, 5, 7], [0, 5, 5])


def test_the_last_release_of_a_thread_known_to_have_ended_is_its_end():
    ended = thread((0, ACQ), (40, FORCED)).ended()
    assert states_of(recording(ended)) == [[(0, 40, HELD)]]
    running = thread((0, ACQ))
    assert running.ended() is running
