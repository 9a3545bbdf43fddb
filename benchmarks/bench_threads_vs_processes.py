"""Do threads with `torchgil.nogil` serve a model better than a process pool: throughput, memory, start-up?

Runs what `torchgil compare` runs, on its built-in model: a transformer with 101 MB of weights and requests of
102 KB. Timed: start-up from an interpreter with torch imported to every worker having answered; then requests
for some seconds, with four in flight per worker. Each way has a fresh process; rounds visit all ways in turn.

Unfair: both ways have the machine to themselves; `torch.export`, needed once by `nogil`, counts as start-up;
processes start from `spawn`, which imports torch in each, as a server that may not fork does.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict
from typing import Any

import harness

from torchgil import usable_cores
from torchgil.compare import BUILTIN, compare, contenders, recommend


def child(configuration: dict[str, Any]) -> Any:
    """Not used: `compare` starts a fresh process for each way itself."""
    raise NotImplementedError(configuration)


def parent(options: argparse.Namespace) -> None:
    """The table, the budget's three ratios, and the JSON."""
    cores = usable_cores()
    workers = max(2, cores)
    ways = contenders(workers, cores, quick=True)
    if options.quick:
        ways = [way for way in ways if way.name.endswith(("eager", "nogil", "processes"))]
    seconds = 1.0 if options.quick else 4.0
    total, started = options.rounds * len(ways), itertools.count(1)
    results = compare(
        ways,
        BUILTIN,
        in_flight=4 * workers,
        seconds=seconds,
        visits=options.rounds,
        started=lambda way: harness.progress(f"visit {next(started)}/{total}: {way.name}"),
    )
    harness.progress("")
    rows = []
    print(f"{'':32} {'start s':>8} {'req/s':>7} {'p50 ms':>7} {'p99 ms':>7} {'PSS MB':>7}   (medians)")
    for way, result in zip(ways, results, strict=True):
        row: dict[str, Any] = {"name": way.name, "contender": asdict(way)}
        if result.error:
            print(f"{way.name:32} failed: {result.error.splitlines()[-1]}")
            rows.append({**row, "error": result.error})
            continue
        measured = [asdict(visit) for visit in result.visits]
        for key in measured[0]:
            values = [one[key] for one in measured if one[key] is not None]
            row[key] = harness.spread(values) if values else None
        rows.append(row)
        columns = ("start_up_s", "requests_per_s", "p50_s", "p99_s", "pss_mb")
        start_up, rate, p50, p99, pss = (row[key]["median"] if row[key] else 0.0 for key in columns)
        print(f"{way.name:32} {start_up:8.2f} {rate:7.1f} {p50 * 1e3:7.1f} {p99 * 1e3:7.1f} {pss:7.0f}")
    named = {row["name"]: row for row in rows}
    threads = named.get(f"{workers} x {max(1, cores // workers)} threads, nogil", {})
    processes = named.get(f"{workers} processes", {})
    for what, key in (("throughput", "requests_per_s"), ("memory", "pss_mb"), ("start-up", "start_up_s")):
        if threads.get(key) and processes.get(key):
            ratio = threads[key]["median"] / processes[key]["median"]
            print(f"threads with nogil against processes, {what}: {ratio:.2f}x")
    print(recommend(results))
    print(f"wrote {harness.save('threads_vs_processes', rows, options.json)}")


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
