"""A model on a GPU beside a busy Python thread: how late is its answer, and what mends it?

An op on a GPU is only queued, but each one queued lets the GIL go and must get it back. One process makes one
model in one way (a row) and calls it, from queueing to the answer on the host (`.cpu()`): alone, and beside
one busy Python thread. "queued" is the time until the call returns.

What is unfair: `torch.compile` fuses operators, `reduce-overhead` replays a CUDA graph in addition.
Not part of `make bench` where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from bench_forward import Beside, inference, merge
from forward_models import Transformer

import torchgil

ROWS = ("eager", "priority", "compile", "compile_graphs", "nogil", "nogil_priority")
BATCH, LENGTH = 8, 128
Call = Callable[[torch.Tensor], torch.Tensor]


def make(row: str, example: torch.Tensor) -> Call:
    """The model as one row calls it; the answer stays on the device."""
    torch.manual_seed(0)
    module = Transformer().eval().cuda()
    if row.startswith("nogil"):
        return torchgil.nogil(module, (example,))
    if row.startswith("compile"):
        mode = "reduce-overhead" if row == "compile_graphs" else None
        return inference(torch.compile(module, mode=mode))
    return inference(module)


def answered(call: Call, x: torch.Tensor, seconds: float, least: int = 20) -> dict[str, list[float]]:
    """Seconds until the call returned, and until its answer was on the host."""
    times: dict[str, list[float]] = {"queued": [], "answered": []}
    end = time.perf_counter() + seconds
    while len(times["queued"]) < least or time.perf_counter() < end:
        started = time.perf_counter()
        result = call(x)
        times["queued"].append(time.perf_counter() - started)
        result.cpu()
        times["answered"].append(time.perf_counter() - started)
    return times


def child(configuration: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    row, scale = configuration["row"], configuration["scale"]
    x = torch.randn(BATCH, LENGTH, 128, device="cuda")
    call = make(row, x)
    priority = torchgil.gil_priority()
    timed = priority(answered) if row.endswith("priority") else answered
    timed(call, x, 0.5 * scale)
    alone = timed(call, x, 2 * scale)
    with Beside(monitor=False) as busy:
        began = time.perf_counter()
        beside = timed(call, x, 3 * scale)
        turns = busy.ticks / (time.perf_counter() - began)
    figures = {
        f"{name}_{what}_p50_s": harness.quantile(times[what], 0.5)
        for name, times in (("alone", alone), ("busy", beside))
        for what in times
    }
    figures["busy_answered_max_s"] = max(beside["answered"])
    figures["busy_loops_per_s"] = turns
    return figures


def parent(options: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        print("bench_cuda: no CUDA device here; nothing measured")
        return
    scale = 0.2 if options.quick else 1.0
    configurations = {row: {"row": row, "scale": scale} for row in options.rows}
    results = harness.interleave(__file__, configurations, rounds=options.rounds)
    table = {row: merge(rounds) for row, rounds in results.items()}
    path = harness.save("cuda", table, options.json)
    print(f"{torch.cuda.get_device_name()}: 4-layer transformer, [{BATCH}, {LENGTH}, 128]; p50, ms")
    print(f"{'':16}{'queued':>9}{'answered':>10}{'beside a busy thread':>22}")
    for row, figures in table.items():
        print(
            f"{row:16}{figures['alone_queued_p50_s']['median'] * 1e3:9.2f}"
            f"{figures['alone_answered_p50_s']['median'] * 1e3:10.2f}"
            f"{figures['busy_answered_p50_s']['median'] * 1e3:22.2f}"
        )
    print(f"-> {path}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which ways to run it")


if __name__ == "__main__":
    harness.main(__doc__, child, parent, add_options)
