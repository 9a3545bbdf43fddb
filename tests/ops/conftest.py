"""The ops, by name and policy, with calls long enough for another thread to be seen beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import torchgil

POLICIES = {
    "released": torchgil.released,
    "held": torchgil.held,
    "adaptive": torchgil.adaptive,
    "torch.ops": torch.ops.torchgil,
}


def small_arguments(op: str) -> tuple[Any, ...]:
    """Arguments of a call of microseconds."""
    torch.manual_seed(0)
    return {
        "add": lambda: (torch.randn(3, 4), torch.randn(4)),
        "matmul": lambda: (torch.randn(3, 4), torch.randn(4, 5)),
        "rms_norm": lambda: (torch.randn(3, 4), torch.rand(4)),
        "nms": lambda: (boxes(8), torch.rand(8), 0.5),
        "spin": lambda: (1e-5,),
        "sleep": lambda: (1e-5,),
    }[op]()


def long_arguments(op: str) -> tuple[Any, ...]:
    """Arguments of a call of some tens of milliseconds."""
    torch.manual_seed(0)
    return {
        "add": lambda: (torch.randn(4096, 2048), torch.randn(4096, 2048)),
        "matmul": lambda: (torch.randn(1024, 1024), torch.randn(1024, 1024)),
        "rms_norm": lambda: (torch.randn(4096, 2048), torch.rand(2048)),
        "nms": lambda: (boxes(4000), torch.rand(4000), 0.9),
        "spin": lambda: (0.02,),
        "sleep": lambda: (0.02,),
    }[op]()


# What the binding defines and the dispatcher has, which is all but wait.
OPS = [n for n in dir(torchgil.released) if not n.startswith("_") and hasattr(torch.ops.torchgil, n)]


def boxes(n: int) -> torch.Tensor:
    corner = torch.rand(n, 2) * 100
    return torch.cat([corner, corner + 1 + torch.rand(n, 2) * 30], 1)


@contextmanager
def ticking() -> Iterator[list[int]]:
    """A second Python thread that notes the time (CLOCK_MONOTONIC, ns) whenever it gets the GIL."""
    ticks: list[int] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.monotonic_ns())
            time.sleep(2e-4)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        while not ticks:
            time.sleep(1e-4)
        yield ticks
    finally:
        stop.set()
        thread.join()


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def call(op: str, policy: str) -> Callable[..., Any]:
    return getattr(POLICIES[policy], op)
