"""A lone request: its caller waits awake where that pays, and whatever happens it is let go on."""

from __future__ import annotations

import threading

import pytest
import torch

import torchgil
from tests.serving.conftest import Recorder, wait_until
from torchgil.ops.parker import Parker

HOUR = 3600


class Told(Parker):
    """Where callers wait awake, with the seconds each was ready to."""

    def __init__(self):
        super().__init__()
        self.spins = []

    def spin(self, seconds):
        self.spins.append(seconds)
        return super().spin(seconds)


class Caller:
    """A thread that waits for a lone request's result, and waits awake by now."""

    def __init__(self, batcher, request):
        self._results = []
        self._thread = threading.Thread(target=lambda: self._results.append(request.result()))
        self._thread.start()
        wait_until(lambda: batcher._dispatcher._told.spins)

    def result(self):
        self._thread.join(60)
        assert self._results, "the caller still waits"
        return self._results[0]


@pytest.fixture
def make(monkeypatch):
    """Makes batchers that have served a request and whose callers wait awake for an hour, if at all."""
    monkeypatch.setattr("torchgil.serving.batcher._AWAKE_S", HOUR)
    monkeypatch.setattr("torchgil.serving.batcher._LINGER_S", HOUR)
    monkeypatch.setattr("torchgil.serving.batcher.usable_cores", lambda: 2)
    batchers = []

    def make(fn=lambda x: x * 2, **options):
        batcher = torchgil.Batcher(fn, **{"max_delay": 0, **options})
        batcher._dispatcher._told = Told()
        batchers.append(batcher)
        first = batcher.submit(torch.ones(1))
        assert first.attend is None  # how long a batch takes is not known yet
        first.result(60)
        if "executor" not in options:
            wait_until(lambda: batcher._dispatcher._lingering)
        return batcher

    yield make
    for batcher in batchers:
        batcher.shutdown(timeout=60)


def test_the_caller_waits_awake_and_is_let_go_on(make):
    batcher = make()
    for i in range(20):
        request = batcher.submit(torch.full((1,), float(i)))
        assert request.attend is not None
        assert request.result().item() == 2 * i
        assert request.attend is None
        wait_until(lambda: batcher._dispatcher._lingering)
    spins = batcher._dispatcher._told.spins
    assert spins
    assert all(HOUR - 60 < seconds <= HOUR for seconds in spins)


def test_a_token_left_from_before_does_not_send_the_caller_to_sleep(make):
    fn = Recorder()
    batcher = make(fn)
    fn.gate.clear()
    caller = Caller(batcher, batcher.submit(torch.ones(1)))
    told = batcher._dispatcher._told
    for _ in range(3):
        seen = len(told.spins)
        told.unpark()
        wait_until(lambda seen=seen: len(told.spins) > seen)
    fn.gate.set()
    assert caller.result().item() == 2


def test_the_error_of_a_lone_request_lets_its_caller_go_on(make):
    batcher = make(lambda x: x / 0 if x.sum() == 1 else [])
    with pytest.raises(TypeError, match="without any"):
        batcher.submit(torch.zeros(1)).result()


def test_the_result_of_a_lone_request_is_told_before_the_next_batch_runs(make):
    fn = Recorder()
    batcher = make(fn)
    fn.wait_entered()
    fn.gate.clear()
    lone = batcher.submit(torch.ones(1))
    fn.wait_entered()
    caller = Caller(batcher, lone)
    other = batcher.submit(torch.ones(1, 3))  # of another kind, so that it is a batch of its own
    assert other.attend is None
    passing = threading.Event()
    fn.fn = lambda x: (passing.wait(60) if x.dim() == 2 else None, x * 2)[1]
    fn.gate.set()
    assert caller.result().item() == 2
    assert not other.done()
    passing.set()
    assert other.result(60).shape == (1, 3)


def test_shutdown_lets_the_caller_go_on(make):
    fn = Recorder()
    batcher = make(fn)
    fn.wait_entered()
    fn.gate.clear()
    caller = Caller(batcher, batcher.submit(torch.ones(1)))
    fn.wait_entered()
    closer = threading.Thread(target=batcher.shutdown)
    closer.start()
    wait_until(lambda: batcher._dispatcher._closed)
    fn.gate.set()
    assert caller.result().item() == 2
    closer.join(60)
    assert not closer.is_alive()


def test_a_worker_that_leaves_lets_the_caller_go_on(make):
    fn = Recorder()
    batcher = make(fn, concurrency=2)
    fn.wait_entered()
    fn.gate.clear()
    lone = batcher.submit(torch.ones(1))
    fn.wait_entered()
    caller = Caller(batcher, lone)
    passing = threading.Event()
    fn.fn = lambda x: (passing.wait(60) if x.dim() == 1 else None, x * 2)[1]
    fn.gate.set()  # the lone request waits on, and another worker serves the next and stays
    assert batcher.submit(torch.ones(1, 3)).result(60).shape == (1, 3)
    wait_until(lambda: batcher._dispatcher._lingering)
    passing.set()
    assert caller.result().item() == 2


def test_who_has_no_patience_does_not_wait_awake(make):
    fn = Recorder()
    batcher = make(fn)
    fn.gate.clear()
    request = batcher.submit(torch.ones(1))
    with pytest.raises(TimeoutError):
        request.result(0)
    assert request.attend is not None
    fn.gate.set()
    assert request.result().item() == 2


def test_nobody_waits_awake_behind_others_or_for_slow_batches(make):
    fn = Recorder()
    batcher = make(fn)
    fn.wait_entered()
    fn.gate.clear()
    lone = batcher.submit(torch.ones(1))
    fn.wait_entered()
    queued = [batcher.submit(torch.ones(1)) for _ in range(2)]
    assert lone.attend is not None
    assert [request.attend for request in queued] == [None, None]
    fn.gate.set()
    for request in [lone, *queued]:
        request.result(60)
    wait_until(lambda: batcher._dispatcher._lingering)
    batcher._dispatcher._lasted_s = HOUR
    request = batcher.submit(torch.ones(1))
    assert request.attend is None
    assert request.result(60).item() == 2


def test_nobody_waits_awake_with_a_delay_or_a_borrowed_executor_or_one_core(make, monkeypatch):
    with torchgil.ThreadPool(1) as pool:
        for options in ({"max_delay": 0.001}, {"executor": pool}):
            batcher = make(**options)
            request = batcher.submit(torch.ones(1))
            assert request.attend is None
            assert request.result(60).item() == 2
    monkeypatch.setattr("torchgil.serving.batcher.usable_cores", lambda: 1)
    batcher = make()
    assert batcher.submit(torch.ones(1)).attend is None
