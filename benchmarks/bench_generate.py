"""How many tokens a second does a small language model give its users, and how evenly do they come?

A Llama of six layers and width 256 with random weights (examples/generate.py), greedy, a prompt of sixteen
tokens and forty-eight that follow, over and over; one Python thread for each user, one intra-op thread each.
The ways: eager with transformers' DynamicCache and StaticCache; eager with `gil_priority()`; its own
`generate()`; `torch.compile` of the step with StaticCache; a process for each user, eager; sessions of
`nogil`, and these within a block of `gil_priority()`. Alone and beside a busy Python thread.

Timed: each token from the one before it, prompts included; tokens a second of all users together, from the
first one's start to the last one's end. A last row has what 64 sessions take of memory.

What is unfair: `generate()` prepares masks and checks for stopping at each token, the other ways do not;
StaticCache and sessions attend to all 80 places of the cache, DynamicCache to those that are filled; beside a
busy thread the processes have none of their own. The engines that serve strangers batch across users, which
none of this does.

Needs transformers: pip install 'torchgil[generate]'.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

import torchgil

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import generate

PROMPT, TOKENS = 16, 48
PLACES = 80
WAYS = ("eager", "static", "generate", "priority", "compile", "processes", "sessions", "sessions, priority")
QUICK = ("eager", "sessions", "sessions, priority")
USERS = (1, 2, 4)
SESSIONS = 64
# A stream of a user's tokens, for ever: each is there when it is yielded.
Stream = Callable[[int], Iterator[int]]


def greedy(step: Callable[[Tensor, Tensor], Tensor]) -> Iterator[int]:
    """A prompt and what follows."""
    tokens, start = prompt(), 0
    for _ in range(TOKENS):
        places = torch.arange(start, start + tokens.shape[1])
        start += tokens.shape[1]
        tokens = step(tokens, places)[:, -1:].argmax(-1)
        yield int(tokens)


def prompt() -> Tensor:
    return torch.arange(1, 1 + PROMPT)[None]


def eager(model: Any, make_cache: Callable[[], Any]) -> Stream:
    def stream(_: int) -> Iterator[int]:
        while True:
            cache = make_cache()

            def step(tokens: Tensor, places: Tensor, cache: Any = cache) -> Tensor:
                with torch.inference_mode():
                    return model(input_ids=tokens, cache_position=places, cache=cache, use_cache=True).logits

            yield from greedy(step)

    return stream


def by_library(model: Any) -> Stream:
    """`model.generate()`: it calls back for each token, and `record` gives it what is called."""

    def stream(_: int) -> Iterator[int]:
        raise NotImplementedError

    stream.model = model  # type: ignore[attr-defined]
    return stream


def sessions(model: Any) -> Stream:
    fast = generate.without_gil(model, PLACES)

    def stream(_: int) -> Iterator[int]:
        with fast.session() as session:
            while True:  # places are given, so a new prompt needs no reset
                yield from greedy(lambda tokens, places: session(input_ids=tokens, cache_position=places))

    return stream


def make(way: str) -> Stream:
    from transformers import DynamicCache, StaticCache

    model = generate.language_model()
    if way.startswith("sessions"):
        return sessions(model)
    if way == "generate":
        return by_library(model)
    if way in ("static", "compile"):
        step = torch.compile(model, dynamic=False) if way == "compile" else model
        return eager(step, lambda: StaticCache(config=model.config, max_cache_len=PLACES))
    return eager(model, lambda: DynamicCache(config=model.config))


class Recorder:
    """When each token came: an iterator's, or as a streamer of `generate()`."""

    def __init__(self, until: float) -> None:
        self.times = [time.perf_counter()]
        self.until = until

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Part of a streamer."""


def record(stream: Stream, user: int, seconds: float) -> list[float]:
    """The times of tokens, for so long."""
    recorder = Recorder(time.perf_counter() + seconds)
    if (model := getattr(stream, "model", None)) is not None:
        while recorder.times[-1] < recorder.until:
            prepared = len(recorder.times)
            model.generate(prompt(), max_new_tokens=TOKENS, do_sample=False, streamer=recorder)
            del recorder.times[prepared]  # it puts the prompt, too
        return recorder.times
    for _ in stream(user):
        recorder.put(None)
        if recorder.times[-1] > recorder.until:
            break
    return recorder.times


def in_threads(stream: Stream, users: int, seconds: float, priority: bool) -> list[list[float]]:
    start = threading.Barrier(users)
    found: list[list[float]] = []

    def work(user: int) -> None:
        torch.set_num_threads(1)
        with torchgil.gil_priority() if priority else contextlib.nullcontext():
            record(stream, user, 0.3 * seconds)
            start.wait()
            found.append(record(stream, user, seconds))

    threads = [threading.Thread(target=work, args=(user,)) for user in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def in_processes(users: int, seconds: float) -> list[list[float]]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(users) as pool:
        barrier = manager.Barrier(users)
        return pool.starmap(one_process, [(barrier, seconds)] * users, chunksize=1)


def one_process(barrier: Any, seconds: float) -> list[float]:
    torch.set_num_threads(1)
    stream = make("eager")
    record(stream, 0, 0.3 * seconds)
    barrier.wait()
    return record(stream, 0, seconds)


class Busy:
    """A Python thread that never waits, while one lives."""

    def __init__(self, wanted: bool) -> None:
        self._stop = not wanted
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop:
            pass

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()


def memory() -> dict[str, float]:
    """MiB of the weights, of one session's state, and by how much the process grew for many sessions."""

    def resident() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    model = generate.language_model()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    fast = generate.without_gil(model, 2048)
    with fast.session() as session:
        for _ in greedy(lambda tokens, places: session(input_ids=tokens, cache_position=places)):
            pass
        state = sum(t.numel() * t.element_size() for t in session.state.values()) / 2**20
    before = resident()
    kept = [fast.session() for _ in range(SESSIONS)]
    grown = resident() - before
    assert len(kept) == SESSIONS
    return {"weights_mib": weights, "state_mib": state, "grown_mib": grown}


def child(configuration: dict[str, Any]) -> dict[str, float]:
    """One way's figures for one number of users."""
    torch.set_num_threads(1)
    way, users, seconds = (configuration[key] for key in ("way", "users", "seconds"))
    if way == "memory":
        return memory()
    if way == "processes":
        with Busy(configuration["busy"]):
            found = in_processes(users, seconds)
    else:
        stream = make(way)
        if way == "compile":
            record(stream, 0, 0)  # compiles
        with Busy(configuration["busy"]):
            found = in_threads(stream, users, seconds, way.endswith("priority"))
    gaps = [after - before for times in found for before, after in itertools.pairwise(times)]
    spans = [(times[0], times[-1]) for times in found]
    # perf_counter is the system's monotonic clock: processes agree on it
    wall = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {
        "tokens_per_s": len(gaps) / wall,
        "p50_s": harness.quantile(gaps, 0.5),
        "p99_s": harness.quantile(gaps, 0.99),
    }


def parent(options: argparse.Namespace) -> None:
    """All ways, and their JSON."""
    peers = harness.versions("transformers")
    if peers["transformers"] is None:  # the model is its own, so without it there is nothing to measure
        print("not measured: pip install 'torchgil[generate]'")
        return
    ways, seconds = (QUICK, 0.5) if options.quick else (WAYS, 2.0)
    cases = [(way, users, busy) for way in ways for users in USERS for busy in (False, True)]
    if options.quick:
        cases = [(way, users, busy) for way, users, busy in cases if users + busy <= 2]
    configurations: dict[str, dict[str, Any]] = {
        f"{way}, {users} users{', busy' * busy}": {
            "way": way,
            "users": users,
            "busy": busy,
            "seconds": seconds,
        }
        for way, users, busy in cases
    }
    configurations["memory"] = {"way": "memory", "users": 0, "busy": False, "seconds": 0}
    results = harness.interleave(__file__, configurations, rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    for name, values in results.items():
        row = {key: configurations[name][key] for key in ("way", "users", "busy")}
        row |= {key: harness.spread([value[key] for value in values]) for key in values[0]}
        row["rounds"] = values
        rows.append(row)
        if "tokens_per_s" in row:
            p50, p99 = (row[key]["median"] * 1e3 for key in ("p50_s", "p99_s"))
            rate = row["tokens_per_s"]["median"]
            print(f"{name:32}{rate:8.1f} tokens/s, p50 {p50:8.2f} ms, p99 {p99:8.2f} ms")
        else:
            print(
                f"{SESSIONS} sessions took {row['grown_mib']['median']:.0f} MiB, {SESSIONS} states "
                f"{SESSIONS * row['state_mib']['median']:.0f}; weights {row['weights_mib']['median']:.0f}"
            )
    print(f"wrote {harness.save('generate', rows, options.json, peers=peers)}")


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
