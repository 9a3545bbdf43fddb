"""Section 4: work on an accelerator is queued; who waits for it, and does the GIL wait too?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from torchgil.demo._monitor import Monitor
from torchgil.ops import released

__all__ = ["Accelerator", "Step", "measure", "why_not"]

TARGET_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the main thread: what it did, how long, and the monitor's ticks meanwhile."""

    what: str
    seconds: float
    ticks: int


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Section 4.

    Attributes:
        device: Name of the device.
        size: n of the [n, n] matrices.
        ops: Products queued before each sync point.
        steps: Queueing and waiting, by each kind of sync point.
    """

    device: str
    size: int
    ops: int
    steps: tuple[Step, ...]


def why_not(device: str) -> str | None:
    """Why section 4 cannot run on that device; None if it can."""
    if device == "cpu":
        return "the CPU queues nothing; see --device cuda or mps"
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}[device]
    if not backend.is_available():
        return f"no {device} device: not in this machine, or not in this build of torch"
    return None


def measure(device: str, progress: Callable[[str], None], size: int = 2048) -> Accelerator:
    """Queues products on the device, then waits for them at a sync point.

    Args:
        device: Anything torch.device() takes.
        progress: Told what is measured next.
        size: n of the [n, n] matrices.
    """
    progress(f"{device}: sizing")
    a = torch.randn(size, size, device=device) / size
    _chain(a, 2).sum().item()  # warm: libraries are loaded at the first product
    begin = time.perf_counter()
    _chain(a, 8).sum().item()
    took = (time.perf_counter() - begin) / 8
    ops = max(4, min(500, round(TARGET_SECONDS / took)))  # fewer than the queue holds: a full one blocks
    steps: list[Step] = []
    for name, sync in _SYNC_POINTS.items():
        progress(f"{device}: {name}")
        with Monitor() as monitor:
            marks = [time.monotonic_ns()]
            result = _chain(a, ops)
            marks.append(time.monotonic_ns())
            sync(result)
            marks.append(time.monotonic_ns())
        for what, start, end in zip((f"queue {ops} matmuls", name), marks, marks[1:], strict=False):
            steps.append(Step(what, (end - start) * 1e-9, len(monitor.between(start, end))))
    return Accelerator(_name(device), size, ops, tuple(steps))


def _chain(a: torch.Tensor, ops: int) -> torch.Tensor:
    result = a
    for _ in range(ops):
        result = released.matmul(a, result)
    return result


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


_SYNC_POINTS: dict[str, Callable[[torch.Tensor], object]] = {
    ".cpu()": lambda result: result.cpu(),
    ".item()": lambda result: result[0, 0].item(),
}
