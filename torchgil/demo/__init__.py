"""The GIL released and held, on real tensors: what `torchgil demo` measures, shows and draws."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torchgil._threads import intra_op_threads, usable_cores
from torchgil._version import __version__
from torchgil.demo import _accelerator as accelerator
from torchgil.demo import _contention as contention
from torchgil.demo import _policies as policies
from torchgil.demo import _scaling as scaling
from torchgil.demo._load import OtherLoad
from torchgil.demo._picture import draw
from torchgil.demo._screen import Screen

__all__ = ["Demo", "Screen", "draw", "measure"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Demo:
    """All that was measured; sections as in the screen.

    Attributes:
        machine: What the figures depend on.
        policies: 1, who gets the GIL while an op runs.
        scaling: 2, what threads bring.
        contention: 3, what a release costs beside a busy Python thread.
        accelerator: 4, or why it was not measured.
    """

    machine: dict[str, Any]
    policies: policies.Policies
    scaling: scaling.Scaling
    contention: contention.Contention
    accelerator: accelerator.Accelerator | str

    def to_dict(self) -> dict[str, Any]:
        """JSON's types alone; times in seconds."""
        return {"format": FORMAT, **asdict(self)}


def measure(screen: Screen, *, quick: bool, device: str) -> Demo:
    """Measures each section and shows it as soon as it is measured.

    Args:
        screen: Where the sections, and the progress until then, are shown.
        quick: Ten seconds of measuring in place of half a minute.
        device: "cpu", "cuda" or "mps", for section 4; the others are about the CPU.
    """
    cores = usable_cores()
    machine: dict[str, Any] = {
        "usable_cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchgil": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    screen.header(machine)
    load = OtherLoad()
    with intra_op_threads(1):
        screen.progress("a matmul of 10 ms")
        size = policies.matmul_size()
        first = policies.measure(size, 5, screen.progress)
        screen.policies(first)
        second = scaling.measure(size, 3 if quick else 6, 1 if quick else 5, screen.progress)
        screen.scaling(second, cores)
        third = contention.measure(20 if quick else 200, 0.1 if quick else 1.0, screen.progress)
        screen.contention(third)
        fourth: accelerator.Accelerator | str = accelerator.why_not(device) or accelerator.measure(
            device, screen.progress
        )
        screen.accelerator(fourth)
    machine["other_load_cores"] = load.cores()
    screen.footer(machine)
    return Demo(machine, first, second, third, fourth)
