"""What this machine and Python mean for threads, and what torchgil can see here."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from torchgil._threads import usable_cores
from torchgil.doctor._torch_facts import ask as ask_torch

__all__ = ["examine"]


def examine() -> dict[str, Any]:
    """Looks, measures, and tries each witness on a call of known behaviour. Imports no torch."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    of_torch = ask_torch()
    ops_seen = of_torch.pop("ops_seen")
    facts: dict[str, Any] = {
        **of_torch,
        "python": platform.python_version(),
        "gil": gil,
        "switch_interval_s": sys.getswitchinterval(),
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": _cpu_model(),
        "cores_online": os.cpu_count() or 1,
        "cores_affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cores_usable": usable_cores(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "extension_error": None,
        "wakeup_p50_s": None,
        "wakeup_p99_s": None,
        "gil_priority_unavailable": None,
        "gil_priority_sees_own_releases": None,
        "witnesses": {},
        "notes": [],
    }
    try:
        from torchgil._priority import own_releases_are_seen, priority_unavailable
        from torchgil._wakeup import wakeup_latency
    except ImportError as error:
        facts["extension_error"] = str(error)
        return facts
    facts["gil_priority_unavailable"] = priority_unavailable()
    if facts["gil_priority_unavailable"] is None:
        facts["gil_priority_sees_own_releases"] = own_releases_are_seen()
    latency = wakeup_latency(1000)
    facts.update(wakeup_p50_s=latency.p50_s, wakeup_p99_s=latency.p99_s)
    facts["witnesses"], facts["notes"] = _try_witnesses(gil)
    if ops_seen is not None:
        facts["witnesses"]["torch ops"] = ops_seen
    return facts


_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "PYTHONGIL",
)


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _try_witnesses(gil: bool) -> tuple[dict[str, bool], list[str]]:
    """Each on something that it must see: a release, a hold."""
    from torchgil.tracing import trace
    from torchgil.watching import Watchdog

    with trace(ops=False) as t:
        zlib.compress(bytes(1_000_000))
    report = t.report()
    witnesses = {"releases and acquires of the GIL": any(thread.releases for thread in report.threads)}
    if gil:
        threshold = 2 * sys.getswitchinterval()
        for _ in range(5):  # its threads want a core in time, which a loaded machine may refuse them once
            with Watchdog(threshold, on_hold=lambda hold: None, mean_gap=threshold / 10) as watchdog:
                _hold(min(10 * threshold, 1.0))
            if watchdog.holds:
                break
        witnesses["long holds (watchdog)"] = bool(watchdog.holds)
    return witnesses, list(report.notes)


def _hold(seconds: float) -> None:
    """One call of about so long at least that keeps the GIL."""
    count, took = 100_000, 0.0
    while took < seconds:
        count *= 2
        began = time.perf_counter()
        sum(range(count))
        took = time.perf_counter() - began
