"""From what length of an op on does releasing the GIL pay?

One process makes matmuls of many sizes under one policy (held, released, adaptive, or released in a block of
`gil_priority()`): alone; beside one thread that is busy in Python, at a switch interval of 5 ms and of
100 us; beside two of them; and from two threads (not with priority, which both would have). What all of them
do is added up, the calls as a share of what they are alone, the busy threads together as a share of what they
do alone: 1 is what one core does, 2 what two do. Intra-op threads: 1.

What is unfair: the busy threads only count, so they never let the GIL go of their own accord; most programs
do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from bench_forward import Beside, merge, throughput

import torchgil

POLICIES = ("held", "released", "adaptive", "priority")
SIZES = (4, 24, 48, 80, 128, 192, 288, 416, 640)
BESIDE = {"busy_5ms": (1, 0.005), "busy_100us": (1, 1e-4), "two_busy_5ms": (2, 0.005)}  # threads, interval


def rate(call: Callable[[], Any], seconds: float) -> float:
    """Calls per second."""
    count, begun = 0, time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds:
        call()
        count += 1
    return count / (now - begun)


def counted(seconds: float, threads: int, call: Callable[[], Any] | None = None) -> tuple[float, float]:
    """Calls per second, 0 without a call, and the turns per second of the busy threads beside them."""
    with Beside(monitor=False, threads=threads) as busy:
        turns, begun = busy.ticks, time.perf_counter()
        calls = 0.0
        if call is None:
            time.sleep(seconds)
        else:
            calls = rate(call, seconds)
        return calls, (busy.ticks - turns) / (time.perf_counter() - begun)


def child(configuration: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    policy, scale = configuration["policy"], configuration["scale"]
    matmul = getattr(torchgil, "released" if policy == "priority" else policy).matmul

    def figures(x: torch.Tensor) -> dict[str, float]:
        def call() -> None:
            matmul(x, x)

        rate(call, 0.05 * scale)
        alone = rate(call, 0.15 * scale)
        found = {"alone_us": 1e6 / alone}
        if policy != "priority":  # it is the calling thread's, and of two that have it neither has it
            found["twice"] = throughput(matmul, [(x, x)], 2, 0.2 * scale) / alone
        for name, (threads, interval) in BESIDE.items():
            _, turns_alone = counted(0.2 * scale, threads)  # anew: a processor's speed changes
            with torchgil.switch_interval(interval):
                calls, turns = counted(0.4 * scale, threads, call)
            found |= {f"{name}_own": calls / alone, f"{name}_other": turns / turns_alone}
            found[name] = found[f"{name}_own"] + found[f"{name}_other"]
        return found

    for threads in (2, 1):  # here a process's Python is slower in its first seconds
        counted(3 * scale, threads)
    measured = torchgil.gil_priority()(figures) if policy == "priority" else figures
    return {str(n): measured(torch.randn(n, n)) for n in SIZES}


def parent(options: argparse.Namespace) -> None:
    scale = 0.2 if options.quick else 1.0
    configurations = {policy: {"policy": policy, "scale": scale} for policy in POLICIES}
    results = harness.interleave(__file__, configurations, rounds=options.rounds)
    table = {policy: merge(rounds) for policy, rounds in results.items()}
    path = harness.save("crossover", table, options.json)
    for name in (*BESIDE, "twice"):
        print(f"\n{name:12}" + "".join(f"{policy:>10}" for policy in POLICIES))
        for n in map(str, SIZES):
            alone = table["held"][n]["alone_us"]["median"]
            shares = (table[policy][n].get(name, {}).get("median", float("nan")) for policy in POLICIES)
            print(f"{alone:9.1f} us" + "".join(f"{share:10.2f}" for share in shares))
    print(f"-> {path}")


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
