"""Who holds the GIL in a PyTorch program, and how to run without it.

Names are resolved on first use: ``import torchgil`` alone imports neither torch
nor the C++ extension, which is what lets the pytest plugin load everywhere. The
ops are registered with torch (torch.ops.torchgil) as soon as both are imported.
"""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING, Any

from torchgil._imports import unregistered, when_imported
from torchgil._version import __version__

if TYPE_CHECKING:
    from torchgil import metrics as metrics
    from torchgil._headers import get_include as get_include
    from torchgil._priority import gil_priority as gil_priority
    from torchgil._threads import intra_op_threads as intra_op_threads
    from torchgil._threads import switch_interval as switch_interval
    from torchgil._threads import usable_cores as usable_cores
    from torchgil.forward._forward import Forward as Forward
    from torchgil.forward._nogil import nogil as nogil
    from torchgil.forward._package import load_package as load_package
    from torchgil.forward._session import Session as Session
    from torchgil.ops import Latch as Latch
    from torchgil.ops import adaptive as adaptive
    from torchgil.ops import adaptive_threshold as adaptive_threshold
    from torchgil.ops import held as held
    from torchgil.ops import released as released
    from torchgil.ops import set_adaptive_threshold as set_adaptive_threshold
    from torchgil.serving import Batcher as Batcher
    from torchgil.serving import BatcherClosed as BatcherClosed
    from torchgil.serving import QueueFull as QueueFull
    from torchgil.serving import ThreadPool as ThreadPool
    from torchgil.tracing._audit import Audit as Audit
    from torchgil.tracing._audit import audit as audit
    from torchgil.tracing._report import Report as Report
    from torchgil.tracing._trace import trace as trace
    from torchgil.watching._holds import Hang as Hang
    from torchgil.watching._holds import LongHold as LongHold
    from torchgil.watching._monitor import GilMonitor as GilMonitor
    from torchgil.watching._watchdog import Watchdog as Watchdog

# Public name -> "module:attribute", or "module:".
_PUBLIC = {
    "released": "torchgil.ops:released",
    "held": "torchgil.ops:held",
    "adaptive": "torchgil.ops:adaptive",
    "Latch": "torchgil.ops:Latch",
    "adaptive_threshold": "torchgil.ops:adaptive_threshold",
    "set_adaptive_threshold": "torchgil.ops:set_adaptive_threshold",
    "ThreadPool": "torchgil.serving:ThreadPool",
    "Batcher": "torchgil.serving:Batcher",
    "BatcherClosed": "torchgil.serving:BatcherClosed",
    "QueueFull": "torchgil.serving:QueueFull",
    "nogil": "torchgil.forward._nogil:nogil",
    "load_package": "torchgil.forward._package:load_package",
    "Forward": "torchgil.forward._forward:Forward",
    "Session": "torchgil.forward._session:Session",
    "get_include": "torchgil._headers:get_include",
    "intra_op_threads": "torchgil._threads:intra_op_threads",
    "gil_priority": "torchgil._priority:gil_priority",
    "switch_interval": "torchgil._threads:switch_interval",
    "usable_cores": "torchgil._threads:usable_cores",
    "trace": "torchgil.tracing._trace:trace",
    "audit": "torchgil.tracing._audit:audit",
    "Audit": "torchgil.tracing._audit:Audit",
    "Report": "torchgil.tracing._report:Report",
    "GilMonitor": "torchgil.watching._monitor:GilMonitor",
    "metrics": "torchgil.metrics:",
    "Hang": "torchgil.watching._holds:Hang",
    "LongHold": "torchgil.watching._holds:LongHold",
    "Watchdog": "torchgil.watching._watchdog:Watchdog",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    target = _PUBLIC.get(name)
    if target is None:
        raise AttributeError(f"module 'torchgil' has no attribute {name!r}")
    module, attribute = target.split(":")
    # The packages first, as every thread does then: one that imports a package and one that imports a module
    # of it would wait for each other, and Python would give one of them a module that is half there.
    for name_so_far in itertools.accumulate(module.split("."), "{}.{}".format):
        value: Any = importlib.import_module(name_so_far)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_ops() -> None:
    # Whoever imports torch, or has a pytest with our plugin, may never use torchgil: a missing or unfit
    # extension is reported when one of its names is first used, and so is an untried torch where warnings
    # are errors. A trace says that it saw no ops, and why.
    try:
        importlib.import_module("torchgil.ops")
    except (ImportError, RuntimeWarning) as error:
        unregistered.append(str(error))


when_imported("torch", _register_ops)  # now, if it already is
