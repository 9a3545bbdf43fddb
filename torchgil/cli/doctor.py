"""``torchgil doctor``: what this machine, Python and torch mean for threads."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from torchgil._files import write_whole
from torchgil._formatting import duration
from torchgil.cli import torch_facts
from torchgil.cli.output import output_file, save_all
from torchgil.cli.streams import for_whoever_reads

__all__ = ["advice", "examine", "main", "render"]

_EPILOG = """\
examples:
  torchgil doctor
  torchgil doctor --json machine.json

It takes about a second, and burns one core meanwhile. The exit code is 1 if torchgil, or the half
of it for the torch that is here, does not work; otherwise 0.
"""


def main(argv: list[str]) -> int:
    """Prints what it found; returns 1 where an extension of torchgil's cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="torchgil doctor",
        description="Says what this machine, Python and torch mean for threads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", metavar="FILE", type=_output, help="write it as JSON as well; - for stdout alone"
    )
    options = parser.parse_args(argv)
    facts = examine()
    text = json.dumps({"format": "torchgil-doctor", "version": 1, **facts, "advice": advice(facts)}, indent=1)
    failed = (
        save_all((options.json, lambda path: write_whole(path, text + "\n"))) if options.json != "-" else []
    )
    shown = text if options.json == "-" else render(facts)
    with for_whoever_reads():
        print(shown)
        for line in failed:
            print(line, file=sys.stderr)
    unfit = facts["extension_error"] or (facts["torch"] and facts["torch_error"])
    return 1 if unfit or failed else 0


def _output(path: str) -> str:
    return path if path == "-" else output_file(path)


def examine() -> dict[str, Any]:
    """Looks, measures, and tries each witness on a call of known behaviour. Imports no torch."""
    from torchgil._threads import usable_cores

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    of_torch = torch_facts.ask()
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
        "witnesses": {},
        "notes": [],
    }
    try:
        from torchgil._priority import priority_unavailable
        from torchgil._wakeup import wakeup_latency
    except ImportError as error:
        facts["extension_error"] = str(error)
        return facts
    facts["gil_priority_unavailable"] = priority_unavailable()
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


def advice(facts: dict[str, Any]) -> list[str]:
    """What the facts call for; nothing where all is well."""
    cores, intra = facts["cores_usable"], facts["intra_op_threads"]
    found = []
    found += [facts[error] for error in ("extension_error", "torch_error") if facts[error]]
    if not facts["gil"]:
        found.append("this Python runs without a GIL: there is none to release, hold or wait for")
    if intra is None:
        pass  # no torch
    elif intra > cores:
        found.append(
            f"oversubscribed: one op uses {intra} intra-op threads, but only {cores} cores are usable "
            f"(affinity, control group): torch.set_num_threads({cores}), or OMP_NUM_THREADS={cores}"
        )
    elif intra > 1:
        found.append(
            f"each Python thread that runs ops has {intra} intra-op threads of its own: 2 of them make "
            f"{2 * intra} busy threads on {cores} cores. torchgil.ThreadPool divides the cores; by hand: "
            f"torchgil.intra_op_threads({max(1, cores // 2)}) in each of 2 workers"
        )
    if len(facts["openmp_runtimes"]) > 1:
        found.append(
            f"{len(facts['openmp_runtimes'])} OpenMP runtimes are loaded, each with threads of its own; "
            "their numbers of threads are set apart from each other"
        )
    if facts["wakeup_p99_s"] is not None and facts["wakeup_p99_s"] > 1e-3:
        found.append(
            f"a woken thread sometimes takes {duration(facts['wakeup_p99_s'])} to run: other work has the "
            "cores, so measure again in a quiet hour before you compare times"
        )
    missing = [name for name, works in facts["witnesses"].items() if not works]
    if missing and facts["gil"]:
        found.append(f"not seen here: {', '.join(missing)}")
    return found


def render(facts: dict[str, Any]) -> str:
    """The facts as text, one line each, with what they mean."""
    cores = f"{facts['cores_usable']} usable, of {facts['cores_online']} online"
    if facts["cores_affinity"] is not None:
        cores += f" ({facts['cores_affinity']} by affinity)"
    interval = duration(facts["switch_interval_s"])
    threads = f"{facts['intra_op_threads']} intra-op, {facts['inter_op_threads']} inter-op"
    lines = [
        ("torch", facts["torch"] or "none that can be imported"),
        ("Python", f"{facts['python']}, {'with the GIL' if facts['gil'] else 'without a GIL'}"),
        ("machine", f"{facts['machine']}, {facts['cpu']}"),
        ("cores", cores),
        *([("threads", threads)] if facts["intra_op_threads"] else []),
        (
            "environment",
            ", ".join(f"{k}={v}" for k, v in facts["environment"].items()) or "nothing about threads",
        ),
        ("OpenMP", ", ".join(facts["openmp_runtimes"]) or "no runtime found"),
        ("switch interval", interval),
    ]
    if facts["wakeup_p50_s"] is not None:
        p50, p99 = duration(facts["wakeup_p50_s"]), duration(facts["wakeup_p99_s"])
        lines.append(("thread wake-up", f"p50 {p50}, p99 {p99}"))
        meaning = (
            f"a release over {p50} beside a busy Python thread mostly costs a switch interval, {interval}"
        )
        lines.append(("", meaning))
        why_not = facts["gil_priority_unavailable"]
        lines.append(("gil_priority()", f"does nothing here: {why_not}" if why_not else "works here"))
    for name, works in facts["witnesses"].items():
        lines.append(("seen here" if works else "NOT seen here", name))
    lines += [("note", note) for note in facts["notes"]]
    lines += [("advice", text) for text in advice(facts)]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)
