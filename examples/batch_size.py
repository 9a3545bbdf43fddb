"""Why a large batch can lose: where two workers' time goes, read from a trace.

    python examples/batch_size.py

The built-in model of `torchgil compare`, two workers, eight requests in flight at all times. Batches of up to
32 rows take all eight at once, and one worker has nothing to do while the other computes; batches of four
leave it its share. Most of the model is `aten::linear`, so the time in there tells how many workers compute.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch

import torchgil
from torchgil.compare import transformer

WORKERS = 2
IN_FLIGHT = 8


def load(submit: Callable[[], Future[Any]], seconds: float) -> float:
    """Keep `IN_FLIGHT` requests in flight for `seconds`; answers per second."""
    room, answered = threading.Semaphore(IN_FLIGHT), 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        room.acquire()
        submit().add_done_callback(lambda _: room.release())
        answered += 1
    for _ in range(IN_FLIGHT):
        room.acquire()
    return answered / (time.perf_counter() - begun)


def main() -> None:
    """One line for each limit of the batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (default 4)")
    seconds = parser.parse_args().seconds
    model, (tokens,) = transformer()
    print("most rows  req/s  in linear  GIL wait (of the workers' time)  batches by rows")
    for most in (1, 32, IN_FLIGHT // WORKERS):
        with (
            torchgil.ThreadPool(WORKERS, intra_op_threads=1, inference_mode=True) as pool,
            torchgil.Batcher(model, executor=pool, concurrency=WORKERS, max_batch_size=most) as batcher,
        ):
            load(lambda: batcher.submit(tokens), seconds / 4)
            with torchgil.trace() as t:
                rate = load(lambda: batcher.submit(tokens), seconds)
            report, sizes = t.report(), batcher.stats().batch_rows
        workers = [thread for thread in report.threads if thread.name.startswith("torchgil-worker")]
        linear_s = sum(op.wall_s for op in report.ops if op.name == "aten::linear")
        waited_s = sum(thread.wait_s + thread.preempted_s for thread in workers)
        time_s = WORKERS * report.wall_s
        print(f"{most:9}  {rate:5.1f}  {linear_s / time_s:9.0%}  {waited_s / time_s:8.1%}{'':25}{sizes}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
