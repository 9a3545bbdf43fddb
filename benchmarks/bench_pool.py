"""What do intra-op limits and a shorter switch interval give a server, and what do they cost?

Oversubscription: workers x intra-op threads, each worker running a network of twelve short ops (four times
linear, GELU, layer norm; 256 rows of 256); forwards per second of all, and the processor time of each. Set
with `torchgil.ThreadPool`, in a fresh process each.

Switch interval: the p50 of an eager forward (four layers of width 128, 64 tokens) on a pool of one worker
beside a thread that is busy in Python, and that thread's own loops per second, at the interpreter's 5 ms and
at shorter intervals; the same under `torchgil.nogil`. How long a thread takes to wake decides how often a
short release loses the GIL (`torchgil doctor` measures it): where it is long, the loss at 5 ms is smaller.

Timed: the second of load after a warm-up. Unfair: the busy thread never waits; a real one does.
"""

from __future__ import annotations

import argparse
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import harness

INTERVALS = (5e-3, 1e-3, 1e-4, 1e-5)


def child(configuration: dict[str, Any]) -> Any:
    """One configuration's figures."""
    if "workers" in configuration:
        return forwards(**configuration)
    return beside_a_busy_thread(**configuration)


def forwards(workers: int, intra_op_threads: int, seconds: float) -> dict[str, float]:
    """Forwards per second of all workers, and processor milliseconds per forward."""
    import torch

    import torchgil

    warnings.simplefilter("ignore", RuntimeWarning)  # oversubscription is what is asked for
    layers = [torch.nn.Linear(256, 256), torch.nn.GELU(), torch.nn.LayerNorm(256)]
    model, x = torch.nn.Sequential(*layers * 4).eval(), torch.randn(256, 256)
    end = 0.0

    def work() -> int:
        done = 0
        while time.perf_counter() < end:
            model(x)
            done += 1
        return done

    with torchgil.ThreadPool(workers, intra_op_threads=intra_op_threads, inference_mode=True) as pool:
        end = time.perf_counter() + seconds / 4
        list(pool.map(lambda _: work(), range(workers)))
        start, cpu = time.perf_counter(), time.process_time()
        end = start + seconds
        total = sum(pool.map(lambda _: work(), range(workers)))
        cpu = time.process_time() - cpu
        return {"forwards_per_s": total / (time.perf_counter() - start), "cpu_ms": 1e3 * cpu / total}


def beside_a_busy_thread(interval: float, nogil: bool, busy: bool, seconds: float) -> dict[str, float]:
    """The forward's p50 in ms, and the busy thread's loops per second."""
    import torch

    import torchgil

    torch.manual_seed(0)
    layers = [torch.nn.TransformerEncoderLayer(128, 4, 512, 0.0, batch_first=True) for _ in range(4)]
    model = torch.nn.Sequential(*layers).eval()
    x = torch.randn(2, 32, 128)
    torch.backends.mha.set_fastpath_enabled(False)  # as in training code and exported models: op by op
    call = torchgil.nogil(model, (x,)) if nogil else model
    stop = threading.Event()
    loops = 0

    def spin() -> None:
        nonlocal loops
        while not stop.is_set():
            loops += 1

    with torchgil.switch_interval(interval), torchgil.ThreadPool(1, inference_mode=not nogil) as pool:
        for _ in range(5):
            pool.submit(call, x).result()
        other = threading.Thread(target=spin)
        if busy:
            other.start()
        times: list[float] = []

        def forwards() -> None:
            begun = time.perf_counter()
            while time.perf_counter() - begun < seconds or len(times) < 3:
                start = time.perf_counter()
                call(x)
                times.append(time.perf_counter() - start)

        begun, before = time.perf_counter(), loops
        pool.submit(forwards).result()
        rate = (loops - before) / (time.perf_counter() - begun)
        stop.set()
        if busy:
            other.join()
    return {
        "p50_ms": harness.quantile(times, 0.5) * 1e3,
        "p99_ms": harness.quantile(times, 0.99) * 1e3,
        "loops_per_s": rate,
    }


def parent(options: argparse.Namespace) -> None:
    """Both tables, and their JSON."""
    import torchgil

    cores = torchgil.usable_cores()
    seconds = 0.3 if options.quick else 1.0
    grid = [(workers, n) for workers in (1, cores, 2 * cores) for n in (1, cores)]
    configurations: dict[str, dict[str, Any]] = {
        f"{workers} x {n}": {"workers": workers, "intra_op_threads": n, "seconds": seconds}
        for workers, n in grid
    }
    for nogil in (False, True):
        name = "nogil" if nogil else "eager"
        base = {"nogil": nogil, "seconds": seconds}
        configurations[f"{name}, alone"] = {**base, "busy": False, "interval": INTERVALS[0]}
        for interval in INTERVALS[: 1 if options.quick else None]:
            configurations[f"{name}, busy, {interval * 1e3:g} ms"] = {
                **base,
                "busy": True,
                "interval": interval,
            }
    results = harness.interleave(str(Path(__file__)), configurations, rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    for name, values in results.items():
        row = {"row": name, **{key: harness.spread([value[key] for value in values]) for key in values[0]}}
        if "p50_ms" in row:
            p50, loops = row["p50_ms"]["median"], row["loops_per_s"]["median"]
            print(f"{name:22} p50 {p50:8.2f} ms, busy thread {loops / 1e6:6.2f} M loops/s")
        else:
            rate, cpu = row["forwards_per_s"]["median"], row["cpu_ms"]["median"]
            print(f"{name:22} {rate:8.0f} forwards/s, {cpu:.2f} ms of processor time each")
        rows.append(row)
    print(f"wrote {harness.save('pool', rows, options.json)}")


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
