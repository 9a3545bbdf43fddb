"""What a type checker sees of the public names; `make lint` has mypy read it, and nothing runs it."""

from __future__ import annotations

import queue
import zlib
from typing import TYPE_CHECKING, Any, Literal

import torch

import torchgil

if TYPE_CHECKING:
    from typing import assert_type  # since Python 3.11


def audits() -> None:
    record = torchgil.audit(zlib.compress, b"")
    assert_type(record, torchgil.Audit[bytes])
    assert_type(record.result, bytes)
    assert_type(record.verdict, Literal["releases", "holds", "partly", "no GIL", "unknown"])
    assert_type(record.report, torchgil.Report)


def forwards(model: torch.nn.Module) -> None:
    forward = torchgil.nogil(model, (torch.ones(2),))
    assert_type(forward, torchgil.Forward)
    assert_type(forward.backend, Literal["graph", "inductor"])
    assert_type(forward(torch.ones(2)), Any)
    loaded: torchgil.Forward = torchgil.load_package("model.pt2")
    loaded(torch.ones(2))


def holds() -> None:
    with torchgil.Watchdog() as watchdog:
        pass
    assert_type(watchdog.holds, list[torchgil.LongHold])
    assert_type(watchdog.hangs, list[torchgil.Hang])


def errors() -> None:
    full: queue.Full = torchgil.QueueFull()
    raise full
