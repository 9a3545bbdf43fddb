"""Everything at once, for a while: then all is accounted for, and as it was. `make stress` runs it.

TORCHGIL_STRESS_S says for how long, TORCHGIL_STRESS_SEED with which dice (printed).
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import torch

import torchgil
from tests.support.unchanged import resident_bytes, unchanged

POLICIES = [torchgil.released, torchgil.held, torchgil.adaptive, torch.ops.torchgil]


class Stress:
    """Eight threads that each do one thing after another, drawn at random."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.end = time.monotonic() + seconds
        self.seed = seed
        self.done: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.futures = 0
        self.lock = threading.Lock()
        self.failed: list[BaseException] = []
        self.forward = torchgil.nogil(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()), (torch.ones(2, 8),)
        )
        self.pool = torchgil.ThreadPool(2, intra_op_threads=1, gil_priority=True)
        self.batcher = torchgil.Batcher(
            self.double, max_batch_size=8, max_delay=0.0005, max_queue=64, on_full="raise"
        )

    @staticmethod
    def double(batch: torch.Tensor) -> torch.Tensor:
        if (batch < 0).any():
            raise ValueError("bad item")
        return batch * 2

    # --- what a thread may do -------------------------------------------------------------------

    def ops(self, dice: random.Random) -> None:
        ops, n = dice.choice(POLICIES), dice.randrange(1, 60)
        x, weight = torch.full((n, n), 2.0), torch.ones(n, requires_grad=dice.random() < 0.3)
        assert ops.add(x, x).sum() == 4 * n * n
        assert ops.matmul(x, x)[0, 0] == 4 * n
        y = ops.rms_norm(x, weight)
        if weight.requires_grad:
            y.sum().backward()
            assert weight.grad is not None
        corner = torch.rand(n, 2)
        assert 1 <= len(ops.nms(torch.cat([corner, corner + 0.5], 1), torch.rand(n), 0.5)) <= n
        dice.choice([ops.spin, ops.sleep])(0.0002)

    def nogil(self, dice: random.Random) -> None:
        assert self.forward(torch.ones(2, 8)).shape == (2, 8)
        with torchgil.gil_priority():
            try:
                self.forward(torch.ones(3, 8))
            except ValueError:
                return
        raise AssertionError("no error")

    def errors(self, dice: random.Random) -> None:
        for ops in POLICIES:
            try:
                ops.add(torch.ones(2), torch.ones(3))
            except RuntimeError:
                continue
            raise AssertionError("no error")

    def trace(self, dice: random.Random) -> None:
        kept = torchgil.trace(max_events=dice.choice([100, 100_000]), ops=dice.random() < 0.8)
        try:
            with kept:
                with torchgil.gil_priority():
                    torchgil.released.spin(0.0005)
        except RuntimeError as error:
            if "already" in str(error):  # another thread's
                return
            raise
        report = kept.report()
        for thread in report.threads:
            parts = thread.free_s, thread.held_s, thread.wait_s, thread.preempted_s
            assert min(parts) >= 0
            assert abs(sum(parts) - thread.wall_s) < 1e-6, thread
        assert report.dropped or not report.ops or any(op.name == "torchgil::spin" for op in report.ops)

    def watchdog(self, dice: random.Random) -> None:
        with torchgil.Watchdog(threshold=0.05, on_hold=lambda hold: None):
            torchgil.held.spin(0.0005)

    def settings(self, dice: random.Random) -> None:
        with torchgil.intra_op_threads(dice.choice([1, 2])):
            torchgil.released.matmul(torch.ones(64, 64), torch.ones(64, 64))

    def take(self, submit: Callable[[], Future[Any]]) -> Future[Any] | None:
        """A request that will have to end, in one way, once."""
        try:
            future = submit()
        except torchgil.QueueFull:
            self.done["queue full"] += 1
            return None
        with self.lock:
            self.futures += 1
        future.add_done_callback(self.ended)
        return future

    def ended(self, future: Future[Any]) -> None:
        ending = "cancelled" if future.cancelled() else type(future.exception()).__name__
        with self.lock:
            self.endings[ending] += 1

    def batch(self, dice: random.Random) -> None:
        values = [dice.choice([1.0, 2.0, 3.0, -1.0]) for _ in range(dice.randrange(1, 6))]
        timeout = dice.choice([None, None, 0.0005])
        futures = [
            self.take(lambda v=v: self.batcher.submit(torch.full((1,), v), timeout=timeout)) for v in values
        ]
        for value, future in zip(values, futures, strict=True):
            if future is None or (dice.random() < 0.2 and future.cancel()):
                continue
            try:
                assert future.result(60).item() == 2 * value
            except ValueError:
                assert value < 0
            except (TimeoutError, CancelledError):
                assert timeout is not None

    def loop(self, dice: random.Random) -> None:
        async def main() -> None:
            tasks = [asyncio.ensure_future(self.batcher(torch.ones(1))) for _ in range(4)]
            tasks[0].cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                good = (asyncio.CancelledError, torchgil.QueueFull)
                assert isinstance(result, good) or result.item() == 2, result

        asyncio.run(main())

    def pooled(self, dice: random.Random) -> None:
        call = dice.choice(
            [(torchgil.released.spin, 0.0005), (int, "no number"), (self.forward, torch.ones(2, 8))]
        )
        future = self.take(lambda: self.pool.submit(*call))
        assert future is not None
        if dice.random() < 0.2 and future.cancel():
            return
        assert (future.exception(60) is not None) == (call[0] is int)

    # --- all of it ------------------------------------------------------------------------------

    ACTIONS = (ops, ops, nogil, errors, trace, watchdog, settings, batch, batch, loop, pooled)

    def run(self, i: int) -> None:
        dice = random.Random(self.seed * 100 + i)
        try:
            while time.monotonic() < self.end and not self.failed:
                action = dice.choice(self.ACTIONS)
                action(self, dice)
                with self.lock:
                    self.done[action.__name__] += 1
        except BaseException as error:
            self.failed.append(error)
            raise

    def all(self) -> None:
        threads = [threading.Thread(target=self.run, args=(i,), name=f"stress-{i}") for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.batcher.shutdown()
        self.pool.shutdown()


def main() -> None:
    seconds = float(os.environ.get("TORCHGIL_STRESS_S", "600"))
    seed = int(os.environ.get("TORCHGIL_STRESS_SEED", time.time()))
    print(f"{seconds:g} s, seed {seed}", flush=True)
    warnings.simplefilter("ignore", RuntimeWarning)  # more threads than processors: so it is meant
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(2 * seconds + 60, exit=True)  # what hangs is shown
    Stress(min(3, seconds / 3), seed + 1).all()  # what is allocated once is there
    stress = Stress(seconds, seed)
    before = resident_bytes()
    grown_mib = None if os.environ.get("SANITIZE") else 64  # which keeps what is freed for a while
    with unchanged(grown_mib=grown_mib, within_s=30):
        stress.all()
    if stress.failed:
        sys.exit(f"seed {seed}: {stress.failed[0]!r}")
    stats = stress.batcher.stats()
    assert sum(stress.endings.values()) == stress.futures, (stress.endings, stress.futures)
    assert stats.queued == stats.running == 0, stats
    print(f"done: {dict(sorted(stress.done.items()))}")
    print(f"{stress.futures} futures ended: {dict(sorted(stress.endings.items()))}")
    faulthandler.cancel_dump_traceback_later()
    print(f"{(resident_bytes() - before) / 2**20:+.1f} MiB; threads, files and settings as before")


if __name__ == "__main__":
    main()
