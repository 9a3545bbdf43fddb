"""Is torchgil's rms_norm as fast as torch's own?

Timed: the forward under no_grad, and forward and backward together (the backward
alone cannot be called on both alike), each over enough calls that the clock does
not matter. Ours and torch's take turns within one process, thread count by thread
count. Unfair to torch: on the CPU its rms_norm is composed of several ops, ours is one.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import harness

SHAPES = {"[64, 512]": ((64, 512), 200), "[2048, 1024]": ((2048, 1024), 10)}
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def child(configuration: dict[str, Any]) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    import torchgil

    shape, calls = SHAPES[configuration["shape"]]
    dtype = getattr(torch, configuration["dtype"])
    x = torch.randn(shape).to(dtype).requires_grad_()
    weight = torch.rand(shape[-1]).to(dtype).requires_grad_()
    grad = torch.randn(shape).to(dtype)
    norms = {
        "torchgil": lambda: torchgil.released.rms_norm(x, weight, 1e-6),
        "torch": lambda: F.rms_norm(x, shape[-1:], weight, 1e-6),
    }

    def seconds(fn: Any) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            fn()
        return (time.perf_counter() - begin) / calls

    times: dict[str, list[float]] = {f"{who} {what}": [] for who in norms for what in ("forward", "both")}
    for _ in range(7):
        for who, norm in norms.items():
            with torch.no_grad():
                times[f"{who} forward"].append(seconds(norm))
            times[f"{who} both"].append(seconds(lambda: torch.autograd.grad(norm(), (x, weight), grad)))  # noqa: B023
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first warms up


def parent(options: Any) -> None:
    rows = []
    print("speed of torch's rms_norm divided by ours (over 1: ours is faster)\n")
    print(f"{'shape':14} {'dtype':9} {'threads':>7} {'forward':>9} {'with backward':>14}")
    shapes = list(SHAPES)[: 1 if options.quick else None]
    for threads in (1,) if options.quick else (1, 2):
        configurations = {
            f"{shape} {dtype}": {"shape": shape, "dtype": dtype} for shape in shapes for dtype in DTYPES
        }
        results = harness.interleave(__file__, configurations, rounds=options.rounds, threads=threads)
        for name, rounds in results.items():
            ratios = {
                what: harness.spread([r[f"torch {what}"] / r[f"torchgil {what}"] for r in rounds])
                for what in ("forward", "both")
            }
            rows.append(
                {**configurations[name], "threads": threads, "torch_over_torchgil": ratios, "rounds": rounds}
            )
            shape, dtype = configurations[name].values()
            forward, both = (ratios[what]["median"] for what in ("forward", "both"))
            print(f"{shape:14} {dtype:9} {threads:7} {forward:8.2f}x {both:13.2f}x")
    if not options.quick or options.json:
        print(f"\nwritten to {harness.save('rms_norm', rows, options.json)}")


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
