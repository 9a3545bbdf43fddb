"""What does GilMonitor cost, next to gilknocker, and is the share that it says the trace's?

Question 1: the CPU time of the monitor's own thread, by the kernel's account (Linux), as a share of
a core, over some seconds of each load, at 200 looks a second; gilknocker's thread beside it, in a
process of its own in the same round, at the same number of questions a second. gilknocker asks for
the GIL and so makes a busy program switch; a second figure is what its question costs the program:
the turns of the load's loop per second, over those with nothing watching. A thread in C that only
sleeps as often and looks at nothing is the least that either can cost on this machine.

Question 2: the share of the time that the GIL was held, by the monitor and by the trace, of the same
seconds, in one process. The trace runs without ops. Their difference stands beside the standard error
that the monitor gives: one in three is more than one of it, one in twenty more than two.

Loads: idle (sleeps), pure Python, eager (a transformer's forward), nogil (the same under one release),
held ops. Inside: the load alone, in the main thread. Unfair: gilknocker gives one number and no thread.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

LOADS = ("idle", "pure Python", "eager", "nogil", "held ops")
WATCHERS = ("nothing", "GilMonitor", "gilknocker", "a sleeper")
INTERVAL_S = 0.005


SLEEPER = """
#include <pthread.h>
#include <time.h>
static volatile int stopped;
static pthread_t thread;
static void* run(void* ns) {
  const struct timespec pause = {0, (long)ns};
  while (!stopped) nanosleep(&pause, 0);
  return 0;
}
void start(long ns) { pthread_create(&thread, 0, run, (void*)ns); }
void stop(void) { stopped = 1; pthread_join(thread, 0); }
"""


class _Sleeper:
    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = f"cc -O2 -shared -fPIC -pthread -x c - -o {folder}/sleeper.so"
            subprocess.run(command.split(), input=SLEEPER, text=True, check=True)
            self._library = ctypes.CDLL(f"{folder}/sleeper.so")

    def start(self) -> None:
        self._library.start(ctypes.c_long(int(INTERVAL_S * 1e9)))

    def stop(self) -> None:
        self._library.stop()


def _load(name: str) -> Callable[[], Any]:
    import torch

    import torchgil

    if name == "idle":
        return lambda: time.sleep(0.01)
    if name == "pure Python":
        return lambda: sum(i * i for i in range(1000))
    if name == "held ops":

        def alternate() -> None:
            torchgil.held.spin(0.002)
            torchgil.released.spin(0.002)

        return alternate
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    x = torch.randn(2, 32, 128)
    forward: Callable[[Any], Any] = model if name == "eager" else torchgil.nogil(model, (x,))

    def call() -> None:
        with torch.inference_mode():
            forward(x)

    return call


def _tasks() -> dict[str, float]:
    """CPU seconds of each thread of this process."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def child(configuration: dict[str, Any]) -> Any:
    if configuration["question"] == "share":
        return _share(configuration["load"], configuration["seconds"])
    return _cost(configuration["load"], configuration["watcher"], configuration["seconds"])


def _run(call: Callable[[], Any], seconds: float) -> tuple[int, float]:
    turns, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
        turns += 1
    return turns, time.perf_counter() - start


def _cost(load: str, watcher: str, seconds: float) -> dict[str, float]:
    call = _load(load)
    _run(call, 0.5)
    watching: Any = None
    before = set(_tasks())
    if watcher == "GilMonitor":
        import torchgil

        watching = torchgil.GilMonitor(INTERVAL_S)
    elif watcher == "gilknocker":
        from gilknocker import KnockKnock

        asks = int(INTERVAL_S * 1e6)
        # By default it asks during a tenth of the time only.
        watching = KnockKnock(asks, sampling_interval_micros=500_000, sleeping_interval_micros=asks)
    elif watcher == "a sleeper":
        watching = _Sleeper()
    if watching:
        watching.start()
    _run(call, 0.2)
    started = _tasks()
    turns, wall = _run(call, seconds)
    ended = _tasks()
    # The load itself starts no thread after its half second of warming up.
    used = sum(ended[task] - started[task] for task in started.keys() & ended.keys() - before)
    if watching:
        watching.stop()
        time.sleep(1)  # gilknocker's thread ends later, and aborts a process that ends before
    return {"share_of_a_core": used / wall, "turns_per_s": turns / wall}


def _share(load: str, seconds: float) -> dict[str, float]:
    import torchgil

    call = _load(load)
    _run(call, 0.5)
    with (
        torchgil.trace(ops=False, max_events=100_000_000) as trace,
        torchgil.GilMonitor(INTERVAL_S) as monitor,
    ):
        _run(call, seconds)
        stats = monitor.stats()
    report = trace.report()
    held_s = sum(thread.held_s for thread in report.threads)
    return {
        "monitor": stats.held_share,
        "trace": held_s / report.wall_s,
        "standard_error": stats.standard_error,
        "looks_per_s": stats.looks / stats.seconds,
    }


def parent(options: argparse.Namespace) -> None:
    if sys.platform != "linux":
        raise SystemExit("bench_monitor: the CPU time of single threads is read from /proc, which is Linux's")
    seconds = 1 if options.quick else 10
    peers = harness.versions("gilknocker")
    harness.stay_where_missing(options, peers)
    watchers = [w for w in WATCHERS if w not in peers or peers[w]]
    loads = LOADS[1:2] if options.quick else LOADS
    configurations = {
        f"{load}: {watcher}": {"question": "cost", "load": load, "watcher": watcher, "seconds": seconds}
        for load in loads
        for watcher in watchers
    } | {f"{load}: share": {"question": "share", "load": load, "seconds": seconds} for load in loads}
    results = harness.interleave(__file__, configurations, rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    for load in loads:
        free = results[f"{load}: nothing"]
        for watcher in watchers[1:]:
            rounds = results[f"{load}: {watcher}"]
            slowed = [r["turns_per_s"] / n["turns_per_s"] for r, n in zip(rounds, free, strict=True)]
            rows.append(
                {
                    "question": "cost",
                    "load": load,
                    "watcher": watcher,
                    "share_of_a_core": harness.spread([r["share_of_a_core"] for r in rounds]),
                    "turns": harness.spread(slowed),
                }
            )
        shares = results[f"{load}: share"]
        rows.append(
            {
                "question": "share",
                "load": load,
                **{key: harness.spread([r[key] for r in shares]) for key in shares[0]},
                "off": harness.spread([abs(r["monitor"] - r["trace"]) for r in shares]),
            }
        )
    if "gilknocker" not in watchers:
        why = "not installed: pip install 'torchgil[bench]'"
        rows.append({"question": "cost", "watcher": "gilknocker", "missing": why})
    path = harness.save("monitor", rows, options.json, peers=peers)
    for row in rows:
        if "missing" in row:
            print(f"{row['watcher']}: {row['missing']}")
        elif row["question"] == "cost":
            share, turns = row["share_of_a_core"], row["turns"]
            print(
                f"{row['load']:12} {row['watcher']:11} {100 * share['median']:.3f} % of a core "
                f"({100 * share['min']:.3f} to {100 * share['max']:.3f}), "
                f"the load at {turns['median']:.3f}x ({turns['min']:.3f} to {turns['max']:.3f})"
            )
        else:
            off, error = row["off"], row["standard_error"]
            print(
                f"{row['load']:12} held {100 * row['monitor']['median']:.1f} % by the monitor, "
                f"{100 * row['trace']['median']:.1f} % by the trace; off by {100 * off['median']:.2f} points "
                f"(at most {100 * off['max']:.2f}), standard error {100 * error['median']:.2f}, "
                f"{row['looks_per_s']['median']:.0f} looks/s"
            )
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
