"""What the batcher's tests share: a function that can be held in a call, and a batcher so held."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import torchgil


class Recorder:
    """A batched function that keeps the shapes it saw and can be held in a call."""

    def __init__(self, fn=lambda x: x * 2, *, open_=True):
        self.fn = fn
        self.shapes = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        if open_:
            self.gate.set()

    def __call__(self, batch):
        self.shapes.append(list(batch.shape) if isinstance(batch, torch.Tensor) else batch)
        self.entered.release()
        assert self.gate.wait(60)
        return self.fn(batch)

    def wait_entered(self):
        assert self.entered.acquire(timeout=60)


@pytest.fixture
def held():
    """A batcher whose first batch, one request alone, is held; with its recorder and that request."""
    fn = Recorder(open_=False)
    batcher = torchgil.Batcher(fn, max_delay=0, max_batch_size=8, max_queue=4)
    first = batcher.submit(torch.zeros(1, 3))
    fn.wait_entered()
    yield batcher, fn, first
    fn.gate.set()
    batcher.shutdown()


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
