"""An AOTInductor package from several threads: torch's loader, then torchgil's.

    python examples/package_threads.py [model.pt2 is made in a temporary folder: a minute, once]

torch's loader holds the GIL for the whole call (pytorch#197516), so its calls run one after another, and
nothing else runs in Python meanwhile. `torchgil.load_package` releases it, and has a runner for each thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import torchgil

THREADS = 2


def rate(call: Callable[..., Any], x: torch.Tensor, seconds: float = 1.0) -> float:
    """Calls per second of all threads together."""

    def work(_: int) -> int:
        calls = 0
        with torchgil.intra_op_threads(1):
            while time.perf_counter() < end:
                call(x)
                calls += 1
        return calls

    with ThreadPoolExecutor(THREADS) as pool:
        end = time.perf_counter() + seconds
        return sum(pool.map(work, range(THREADS))) / seconds


if __name__ == "__main__":
    layers = [torch.nn.Linear(512, 512), torch.nn.GELU()] * 8
    model, x = torch.nn.Sequential(*layers).eval(), torch.randn(32, 512)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.pt2")
        torch._inductor.aoti_compile_and_package(torch.export.export(model, (x,)), package_path=path)
        theirs, ours = torch._inductor.aoti_load_package(path), torchgil.load_package(path, runners=THREADS)
        torch.testing.assert_close(ours(x), theirs(x))
        for name, call in (("torch's loader", theirs), ("load_package", ours)):
            verdict = torchgil.audit(call, x).verdict
            print(f"{name:15} {verdict:9} {rate(call, x):.0f} calls/s, {THREADS} threads")
