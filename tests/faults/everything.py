"""For the children of these tests: ops, pool, batcher, trace, watchdog and priority, all at work at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

import torchgil


class Everything:
    """Threads under every policy, one with priority, a pool and a batcher that are fed all the time."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
        self.pool = torchgil.ThreadPool(2, intra_op_threads=1)
        self.batcher = torchgil.Batcher(lambda x: x * 2, max_delay=0.0005)
        self.watchdog = torchgil.Watchdog(threshold=5, on_hold=lambda hold: None)
        self.trace = torchgil.trace(max_events=10_000)
        self.ended = threading.Event()

    def goes_on(self) -> bool:
        return not self.ended.is_set() and threading.main_thread().is_alive()

    def work(self, ops: object) -> None:
        x = torch.ones(8)
        with torchgil.gil_priority() if ops is torchgil.released else ExitStack():
            while self.goes_on():
                ops.add(x, x)
                ops.sleep(0.0005)

    def ask(self) -> None:
        while self.goes_on():
            try:
                requests = [self.batcher.submit(torch.ones(1)), self.pool.submit(int)]
            except RuntimeError as error:  # since the interpreter ends
                if isinstance(error, torchgil.BatcherClosed) or "shutdown" in str(error):
                    return
                raise
            assert [int(request.result(60)) for request in requests] == [2, 0]

    def start(self) -> None:
        self.watchdog.start()
        self.trace.__enter__()
        policies = [torchgil.released, torchgil.held, torchgil.adaptive, torch.ops.torchgil]
        self.threads = [threading.Thread(target=self.work, args=(ops,)) for ops in policies]
        self.threads.append(threading.Thread(target=self.ask))
        for thread in self.threads:
            thread.start()
        self.pool.submit(int).result(60)
        self.batcher.submit(torch.ones(1)).result(60)

    def stop(self) -> torchgil.Report:
        self.ended.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        self.trace.__exit__(None, None, None)
        self.watchdog.stop()
        self.batcher.shutdown()
        self.pool.shutdown()
        return self.trace.report()


@contextmanager
def at_work() -> Iterator[Everything]:
    everything = Everything()
    everything.start()
    try:
        yield everything
    finally:
        report = everything.stop()
    calls = {op.name: op.calls for op in report.ops}
    assert calls["torchgil::add"] > 0, report


def uses_it_all() -> None:
    """What a new process, or the child of a fork, must be able to do."""
    x = torch.ones(4)
    for ops in (torchgil.released, torchgil.held, torchgil.adaptive, torch.ops.torchgil):
        assert ops.add(x, x).sum() == 8
    with at_work():
        torchgil.released.spin(0.001)
