"""Which command makes each file of benchmarks/results, and whether what it measures has changed since."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OLDER = "older than its code"


@dataclass(frozen=True)
class Kept:
    """One file of results."""

    command: str
    code: tuple[str, ...]  # what of torchgil it measures: a change of it may change the figures


_FORWARD = ("csrc/torch/forward", "torchgil/forward", "csrc/gil/priority")
_OPS = ("csrc/torch/ops", "torchgil/include")
_TRACE = ("csrc/gil/trace", "csrc/torch/op_events.cpp", "torchgil/tracing")

KEPT = {
    "batching": Kept("python benchmarks/bench_batching.py --rounds 9", ("torchgil/serving",)),
    "call_overhead": Kept("python benchmarks/bench_call_overhead.py", _OPS),
    "crossover": Kept("python benchmarks/bench_crossover.py --rounds 3", (*_OPS, "csrc/gil/priority")),
    "cuda": Kept("python benchmarks/bench_cuda.py --rounds 2", _FORWARD),
    "findings_cuda": Kept("python benchmarks/findings.py", _TRACE),
    "forward": Kept("python benchmarks/bench_forward.py --rounds 4", _FORWARD),
    "generate": Kept("python benchmarks/bench_generate.py", _FORWARD),
    "hangs": Kept("python benchmarks/bench_hangs.py --rounds 1", ("csrc/gil/watch", "torchgil/watching")),
    "io": Kept("python benchmarks/bench_io.py", ("csrc/gil/priority",)),
    "monitor": Kept("python benchmarks/bench_monitor.py --rounds 2", ("csrc/gil/watch", "torchgil/watching")),
    "pool": Kept(
        "python benchmarks/bench_pool.py",
        ("torchgil/serving/_pool.py", "torchgil/_threads.py", "csrc/gil/threads", *_FORWARD),
    ),
    "priority": Kept("python benchmarks/bench_priority.py", ("csrc/gil/priority", "torchgil/_priority.py")),
    "rms_norm": Kept("python benchmarks/bench_rms_norm.py", ("csrc/torch/ops/rms_norm.cpp",)),
    "scaling": Kept("python benchmarks/bench_scaling.py", _OPS),
    "scaling_16_cores": Kept(
        "python benchmarks/bench_scaling.py --json benchmarks/results/scaling_16_cores.json --rounds 3", _OPS
    ),
    "third_party": Kept("python benchmarks/third_party.py", _TRACE),
    "threads_vs_processes": Kept(
        "python benchmarks/bench_threads_vs_processes.py --rounds 3",
        ("torchgil/compare", "torchgil/serving", *_FORWARD),
    ),
    "tracing": Kept("python benchmarks/bench_tracing.py", (*_TRACE, "csrc/gil/watch", "torchgil/watching")),
}


def command(name: str, result: Mapping[str, Any]) -> str:
    """The one that made it; a file of before that was written down has it from here."""
    return str(result["machine"].get("command") or KEPT[name].command)


def changed_since(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    """What of the measured code is another now than when it was measured; () where git cannot say."""
    measured = result["machine"]["commit"]
    if measured is None or _git("merge-base", "--is-ancestor", measured, "HEAD") is None:
        # Of a history that was rewritten, or is not all here: no later than it was kept.
        measured = _git("log", "-1", "--format=%H", "--", f"benchmarks/results/{name}.json")
    if not measured:
        return ()
    return tuple(
        path for path in KEPT[name].code if _git("diff", "--name-only", measured, "HEAD", "--", path)
    )


@functools.cache
def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails, or this is no checkout."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def when(name: str, result: Mapping[str, Any]) -> str:
    """Its date, with a mark where the code is another by now."""
    return str(result["machine"]["date"]) + (f", {OLDER}" if changed_since(name, result) else "")
