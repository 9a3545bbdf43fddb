"""For test_first_use.py: each entry point of torchgil, called once, in a process that has not imported it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

LIMIT_S = 60  # for what takes some tenths of a second; the machine may be busy


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


EXPORTED: torch.export.ExportedProgram  # of it, once for all processes


def prepare() -> None:
    """What the entries need, without torchgil."""
    global EXPORTED
    EXPORTED = torch.export.export(Double(), (torch.ones(2),))


def op_module(name: str) -> Callable[[], None]:
    def run() -> None:
        import torchgil

        ops = torch.ops.torchgil if name == "torch.ops" else getattr(torchgil, name)
        assert ops.add(torch.ones(2), torch.ones(2)).sum() == 4

    return run


def trace() -> None:
    import torchgil

    with torchgil.trace() as t:
        torch.ones(2) + 1
    assert any(op.name == "aten::add" for op in t.report().ops)


def report() -> None:
    """Of a file that is none: to write one is another entry's use."""
    import torchgil

    try:
        torchgil.Report.load(__file__)
    except ValueError:
        return
    raise AssertionError("no error")


def audit() -> None:
    import torchgil

    assert torchgil.audit(torch.add, torch.ones(2), 1).result.sum() == 4


def watchdog() -> None:
    import torchgil

    with torchgil.Watchdog(threshold=5, on_hold=lambda hold: None):
        pass


def monitor() -> None:
    import torchgil

    with torchgil.GilMonitor() as m:
        m.stats()


def priority() -> None:
    import torchgil

    with torchgil.gil_priority():
        torch.ones(2) + 1


def pool() -> None:
    import torchgil

    with torchgil.ThreadPool(2) as p:
        assert p.submit(torch.ones, 3).result(LIMIT_S).sum() == 3


def intra_op_threads() -> None:
    import torchgil

    with torchgil.intra_op_threads(1):
        assert torch.get_num_threads() == 1


def nogil() -> None:
    import torchgil

    assert torchgil.nogil(EXPORTED)(torch.ones(2)).sum() == 4


def load_package() -> None:
    """Of one that is none, where there is no other: to compile one takes longer than all of this."""
    import torchgil

    if path := os.environ.get("TORCHGIL_STRESS_PACKAGE"):
        torchgil.load_package(path)
        return
    try:
        torchgil.load_package(__file__)
    except ValueError:
        return
    raise AssertionError("no error")


def batcher() -> None:
    import torchgil

    with torchgil.Batcher(lambda x: x + 1) as b:
        assert b.submit(torch.ones(1)).result(LIMIT_S).item() == 2


def switch_interval() -> None:
    import torchgil

    with torchgil.switch_interval(1e-4):
        pass


def metrics() -> None:
    import torchgil

    class Registry:
        def register(self, collector: object) -> None: ...
        def unregister(self, collector: object) -> None: ...

    with torchgil.GilMonitor() as m:
        torchgil.metrics.export(m, "first", Registry())()


ENTRIES: dict[str, Callable[[], None]] = {
    **{name: op_module(name) for name in ("released", "held", "adaptive", "torch.ops")},
    **{
        entry.__name__: entry
        for entry in (
            trace,
            report,
            audit,
            watchdog,
            monitor,
            priority,
            pool,
            intra_op_threads,
            nogil,
            load_package,
            batcher,
            switch_interval,
            metrics,
        )
    },
}
