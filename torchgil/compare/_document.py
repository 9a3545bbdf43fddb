"""A comparison as plain data, for JSON."""

from __future__ import annotations

import platform
from typing import Any

import torch

from torchgil._threads import usable_cores
from torchgil._version import __version__
from torchgil.compare._run import Result

__all__ = ["document"]

FORMAT_VERSION = 2


def document(
    results: list[Result], factory: str, *, workers: int, in_flight: int, seconds: float
) -> dict[str, Any]:
    """The results, and what they depend on: the machine, and how the load was made."""
    return {
        "format": "torchgil-compare",
        "version": FORMAT_VERSION,
        "machine": {
            "cores": usable_cores(),
            "cpu": platform.processor() or platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchgil": __version__,
        },
        "factory": factory,
        "workers": workers,
        "in_flight": in_flight,
        "seconds": seconds,
        "rows": [result.to_dict() for result in results],
    }
