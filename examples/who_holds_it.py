"""Which line of a program holds the GIL, and what that costs the others.

    python examples/who_holds_it.py

A thread that should tick every 2 ms runs beside three calls: one that releases the GIL, one that holds it,
and Python code, which gives way by itself. The watchdog names the one that holds; the trace shows who waited.
"""

from __future__ import annotations

import json
import threading
import time

import torch

import torchgil

DATA = torch.randn(1200, 1200)
TEXT = json.dumps(list(range(1_000_000)))


def releases() -> None:
    for _ in range(4):
        torch.mm(DATA, DATA)


def holds() -> None:
    json.loads(TEXT)  # C code that makes Python objects: it cannot let go


def python() -> None:
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        pass


def longest_gap(call: object) -> float:
    """Seconds between two ticks of the other thread, at most, while call() runs."""
    ticks, stop = [time.perf_counter()], threading.Event()

    def tick() -> None:
        while not stop.wait(0.002):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick, name="ticker")
    thread.start()
    call()  # type: ignore[operator]
    stop.set()
    thread.join()
    return max(b - a for a, b in zip(ticks, [*ticks[1:], time.perf_counter()], strict=True))


if __name__ == "__main__":
    with torchgil.Watchdog(threshold=0.03, on_hold=lambda hold: None) as watchdog, torchgil.trace() as t:
        for call in (releases, holds, python):
            print(f"{call.__name__:8} the ticker's longest gap: {longest_gap(call) * 1e3:.0f} ms")
    print(*(hold.format() for hold in watchdog.holds), sep="\n")
    print(t.report())
