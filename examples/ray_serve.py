"""Replicas of Ray Serve with a pool and a batcher inside, beside plain ones with `@serve.batch`.

    pip install 'torchgil[ray]' && python examples/ray_serve.py --json ray.json

Starts a Ray of its own, and for either kind two replicas of a core each: 200 clients ask over HTTP for some
seconds; then they ask again, and amid that one replica is killed. Each request has a number, and each replica
writes down the numbers that it answers. So it is known of every request whether it was answered (status 200),
refused (any other status) or lost (neither), and whether twice.

All of it listens on the loopback interface, but for one port of each replica, for calls from other
deployments: Ray 2.60 opens that on every interface, and has no setting for it. A network of its own keeps it
in (Linux):

    unshare -rn sh -c 'ip link set lo up && exec "$@"' sh python examples/ray_serve.py
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import json
import os
import signal
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Before ray is imported: it would report home, and on Linux listen on every interface.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import aiohttp
import psutil
import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import torchgil

FEATURES = 128
REPLICAS = 2
OPTIONS: dict[str, Any] = {
    "num_replicas": REPLICAS,
    "ray_actor_options": {"num_cpus": 1},
    "max_ongoing_requests": 256,
    "graceful_shutdown_timeout_s": 5,
}


def make_model() -> torch.nn.Module:
    """18 MB of weights: reading them is most of a single row's time, so batches pay."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(FEATURES, 2048), torch.nn.Linear(2048, 2048), torch.nn.Linear(2048, 8)
    return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]).eval()


class Replica:
    """What both kinds do with a request: ask the model, note the number, answer."""

    def __init__(self, journal: str) -> None:
        self.journal = os.open(Path(journal) / str(os.getpid()), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    async def __call__(self, request: Request) -> JSONResponse:
        """One row of float32 as bytes; the number is in a header."""
        number = request.headers["x-number"]
        x = torch.frombuffer(bytearray(await request.body()), dtype=torch.float32).reshape(1, FEATURES)
        try:
            y = await self.answer(x)
        except (torchgil.QueueFull, torchgil.BatcherClosed, TimeoutError) as error:
            return JSONResponse({"number": number, "error": str(error)}, 503)
        os.write(self.journal, f"{number}\n".encode())
        return JSONResponse({"number": number, "replica": os.getpid(), "y": y.flatten().tolist()})

    async def answer(self, x: torch.Tensor) -> torch.Tensor:
        """The model's rows for `x`."""
        raise NotImplementedError


@serve.deployment(**OPTIONS)
class Torchgil(Replica):
    """The replica of docs/serving.md."""

    def __init__(self, journal: str) -> None:
        super().__init__(journal)
        rows = torch.export.Dim("rows", max=4096)  # batches differ in size
        forward = torchgil.nogil(make_model(), (torch.randn(2, FEATURES),), dynamic_shapes=({0: rows},))
        self.pool = torchgil.ThreadPool(1, intra_op_threads=1)  # what num_cpus promises; Ray sets no quota
        self.batcher = torchgil.Batcher(forward, executor=self.pool, on_full="raise", timeout=20.0)

    async def answer(self, x: torch.Tensor) -> torch.Tensor:
        """Batched in a worker, beside the replica's event loop."""
        y: torch.Tensor = await self.batcher(x)
        return y

    def __del__(self) -> None:  # Ray calls it as the replica ends
        self.batcher.shutdown(timeout=5.0)
        self.pool.shutdown()


@serve.deployment(**OPTIONS)
class Plain(Replica):
    """What Ray Serve has for it: batches, run on the replica's event loop."""

    def __init__(self, journal: str) -> None:
        super().__init__(journal)
        self.model = make_model()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def answer(self, x: list[torch.Tensor]) -> list[torch.Tensor]:
        """Called with one row, given a list of them by the decorator."""
        with torch.inference_mode():
            return list(self.model(torch.cat(x)).split(1))


@dataclass
class Load:
    """What the clients saw."""

    sent: int = 0
    answered: int = 0
    wrong: int = 0  # an answer with another's number, or another's rows
    lost: collections.Counter[str] = field(default_factory=collections.Counter)  # by error; no status came
    doubled: int = 0  # answered by two replicas, or by one twice
    refused: collections.Counter[int] = field(default_factory=collections.Counter)  # by status
    latencies_s: list[float] = field(default_factory=list)
    replicas: set[int] = field(default_factory=set)
    wall_s: float = 0.0


class Clients:
    """200 clients, each of which asks, waits for its answer and asks again."""

    def __init__(self, url: str, clients: int, journal: Path) -> None:
        self.url, self.clients, self.journal = url, clients, journal
        self.numbers = itertools.count()
        self.inputs = torch.randn(32, FEATURES)
        with torch.inference_mode():
            self.outputs = make_model()(self.inputs)
        self.bodies = [bytes(row.numpy()) for row in self.inputs]

    async def load(self, seconds: float, victim: int | None = None) -> Load:
        """Ask for `seconds`; after half of them kill the process `victim`."""
        load = Load()
        begun = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def client() -> None:
                while time.monotonic() - begun < seconds:
                    await self.ask(session, load)

            async def kill() -> None:
                if victim is not None:
                    await asyncio.sleep(seconds / 2)
                    os.kill(victim, signal.SIGKILL)

            await asyncio.gather(kill(), *[client() for _ in range(self.clients)])
        load.wall_s = time.monotonic() - begun
        written = collections.Counter(
            number for file in self.journal.iterdir() for number in file.read_text().split()
        )
        load.doubled = sum(times > 1 for times in written.values())
        return load

    async def ask(self, session: aiohttp.ClientSession, load: Load) -> None:
        """One request, and what becomes of it."""
        number = next(self.numbers)
        which = number % len(self.bodies)
        load.sent += 1
        asked = time.monotonic()
        try:
            async with session.post(
                self.url, data=self.bodies[which], headers={"x-number": str(number)}
            ) as response:
                if response.status != 200:
                    await response.read()
                    load.refused[response.status] += 1
                    return
                answer = await response.json()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            load.lost[repr(error)] += 1
            return
        load.answered += 1
        load.latencies_s.append(time.monotonic() - asked)
        load.replicas.add(answer["replica"])
        y = torch.tensor(answer["y"])
        load.wrong += answer["number"] != str(number) or not torch.allclose(y, self.outputs[which], atol=1e-4)


def measure(deployment: Any, port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Deploy one kind, load it, kill one of its replicas under load, and take it down."""
    with tempfile.TemporaryDirectory() as journal:
        serve.run(deployment.bind(journal), route_prefix="/")
        try:
            ask = Clients(f"http://127.0.0.1:{port}/", clients, Path(journal))
            asyncio.run(ask.load(min(2.0, seconds)))  # warm up
            quiet = asyncio.run(ask.load(seconds))
            processes = [psutil.Process(pid) for pid in quiet.replicas]
            memory = [process.memory_full_info() for process in processes]
            killed = asyncio.run(ask.load(seconds, min(quiet.replicas)))
        finally:
            serve.delete("default")
    percentiles = statistics.quantiles(quiet.latencies_s, n=100)
    return {
        "requests_per_s": quiet.answered / quiet.wall_s,
        "p50_s": percentiles[49],
        "p99_s": percentiles[98],
        "replicas_pss_mb": sum(getattr(m, "pss", m.uss) for m in memory) / 1e6,
        "quiet": summary(quiet),
        "killed": summary(killed),
    }


def summary(load: Load) -> dict[str, Any]:
    """The counts, for JSON."""
    counts = asdict(load)
    del counts["latencies_s"]
    counts |= {"refused": dict(load.refused), "lost": dict(load.lost), "replicas": len(load.replicas)}
    return counts


def main() -> None:
    """Both kinds, in one run on one Ray."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load (default 8)")
    parser.add_argument(
        "--limit", type=int, default=300, help="seconds after which all is given up (default 300)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    signal.alarm(options.limit)  # Ray's processes end with this one
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        num_cpus=REPLICAS + 1,
        include_dashboard=False,
        object_store_memory=80_000_000,
        logging_level="warning",
        log_to_driver=False,
    )
    results = {}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        for deployment in (Torchgil, Plain):
            results[deployment.name] = measure(deployment, port, options.clients, options.seconds)
    finally:
        serve.shutdown()
        ray.shutdown()
    print(f"{'':10} {'req/s':>7} {'p50 ms':>7} {'p99 ms':>7} {'MB':>5}   one of {REPLICAS} replicas killed:")
    for name, r in results.items():
        k = r["killed"]
        print(
            f"{name:10} {r['requests_per_s']:7.0f} {r['p50_s'] * 1e3:7.0f} {r['p99_s'] * 1e3:7.0f} "
            f"{r['replicas_pss_mb']:5.0f}   {k['sent']} sent, {k['answered']} answered, "
            f"{k['refused'] or 'none'} refused, {k['lost'] or 'none'} lost, {k['doubled']} doubled, "
            f"{k['wrong']} wrong"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
