"""What does gil_priority() give a thread that does I/O beside a thread that is busy in Python?

One process does one kind of work in one way, alone and beside a thread that counts in Python. No op of torch
is involved: each release is the interpreter's own. `echo` sends 64 bytes through a loopback socket to another
process, which sends them back; `queue` hands an item to another thread through a queue.Queue, which hands it
back through a second one; `asyncio` is how late an event loop comes back from call_later(0.001). The ways:
`plain`; `priority`, working threads in a block of gil_priority(); `interval`, sys.setswitchinterval(1e-5),
which is for every thread of the process.

What is unfair: the busy thread counts in a tight loop, which gives way within nanoseconds when it is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
from bench_priority import Busy

import torchgil

WAYS = ("plain", "priority", "interval")
WORKS = ("echo", "queue", "asyncio")
LATER_S = 0.001


def block(way: str) -> contextlib.AbstractContextManager[None]:
    """What a working thread is in."""
    return torchgil.gil_priority() if way == "priority" else contextlib.nullcontext()


def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            break
        data += part
    return data


@contextlib.contextmanager
def echo(way: str) -> Iterator[Callable[[], float]]:
    """Seconds of one round trip; the other process has a GIL of its own, and nobody busy."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := received(connection, 64):
                connection.sendall(data)
        os._exit(0)
    with socket.create_connection(listener.getsockname()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def trip() -> float:
            started = time.perf_counter()
            connection.sendall(b"x" * 64)
            received(connection, 64)
            return time.perf_counter() - started

        yield trip
    listener.close()
    os.waitpid(child, 0)


@contextlib.contextmanager
def hand_over(way: str) -> Iterator[Callable[[], float]]:
    """Seconds of one item's way to another thread and back, halved."""
    there: queue.Queue[int] = queue.Queue()
    back: queue.Queue[int] = queue.Queue()

    def give_back() -> None:
        with block(way):
            while item := there.get():
                back.put(item)

    def trip() -> float:
        started = time.perf_counter()
        there.put(1)
        back.get()
        return (time.perf_counter() - started) / 2

    other = threading.Thread(target=give_back)
    other.start()
    yield trip
    there.put(0)
    other.join()


@contextlib.contextmanager
def loop(way: str) -> Iterator[Callable[[], float]]:
    """Seconds that an event loop is late."""

    async def later() -> float:
        started = time.perf_counter()
        await asyncio.sleep(LATER_S)
        return time.perf_counter() - started - LATER_S

    with contextlib.closing(asyncio.new_event_loop()) as own:
        yield lambda: own.run_until_complete(later())


MAKE = {"echo": echo, "queue": hand_over, "asyncio": loop}


def child(configuration: dict[str, Any]) -> dict[str, Any]:
    """The figures of one work in one way."""
    work, way, scale = configuration["work"], configuration["way"], configuration["scale"]

    def times(call: Callable[[], float], seconds: float) -> list[float]:
        seen: list[float] = []
        end = time.perf_counter() + seconds
        with block(way):
            while len(seen) < 5 or time.perf_counter() < end:
                seen.append(call())
        return seen

    interval = 1e-5 if way == "interval" else sys.getswitchinterval()
    with MAKE[work](way) as call:
        times(call, 0.2 * scale)
        alone = times(call, 1.0 * scale)
        with torchgil.switch_interval(interval), Busy(1) as busy:
            _, free = busy.per_second(lambda: time.sleep(0.5 * scale))
            beside, left = busy.per_second(lambda: times(call, 2.0 * scale))
    return {
        "alone_p50_s": harness.quantile(alone, 0.5),
        "p50_s": harness.quantile(beside, 0.5),
        "p99_s": harness.quantile(beside, 0.99),
        "busy_keep": sum(left) / sum(free),
    }


def parent(options: argparse.Namespace) -> None:
    """Measures all, writes the rows, prints the table."""
    scale = 0.1 if options.quick else 1.0
    configurations = {
        f"{work}, {way}": {"work": work, "way": way, "scale": scale} for work in WORKS for way in WAYS
    }
    rows: list[dict[str, Any]] = []
    for name, results in harness.interleave(__file__, configurations, rounds=options.rounds).items():
        keys = {key: value for key, value in configurations[name].items() if key != "scale"}
        rows.append({**keys, **{k: harness.spread([r[k] for r in results]) for k in results[0]}})
    path = harness.save("io", rows, options.json)
    print(f"{'':20}alone ms  beside ms     p99 ms   the busy thread keeps")
    for r in rows:
        alone, p50, p99 = (r[key]["median"] * 1e3 for key in ("alone_p50_s", "p50_s", "p99_s"))
        name, keep = f"{r['work']}, {r['way']}", r["busy_keep"]["median"]
        print(f"{name:20}{alone:8.3f} {p50:10.3f} {p99:10.3f} {keep:23.0%}")
    print(f"-> {path}")


if __name__ == "__main__":
    harness.main(__doc__, child, parent)
