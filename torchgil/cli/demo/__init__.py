"""torchgil demo: see the GIL released and held, on real tensors, in one screen and one picture."""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torchgil._files import write_whole
from torchgil._threads import intra_op_threads, usable_cores
from torchgil._version import __version__
from torchgil.cli import needs
from torchgil.cli.demo import accelerator, contention, policies, scaling
from torchgil.cli.demo.load import OtherLoad
from torchgil.cli.demo.screen import Screen
from torchgil.cli.output import output_file, save_all

__all__ = ["Demo", "main"]

FORMAT = 1

_EXAMPLES = """\
examples:
  torchgil demo                         half a minute, on the CPU
  torchgil demo --quick                 ten seconds, rougher figures
  torchgil demo --plot demo.png         the same, and a picture of it
  torchgil demo --json demo.json        the figures, for a script
  torchgil demo --device cuda           also queue work on a GPU and wait for it
  torchgil demo | less                  plain text when piped
"""


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


def main(argv: list[str]) -> int:
    """Measures, shows each section when it is ready, writes the files asked for."""
    options = _parser().parse_args(argv)
    if options.plot:
        needs("matplotlib")  # before half a minute of measuring, not after
    screen = Screen()
    demo = _measure(options, screen)
    files = [("figures", options.json), ("picture", options.plot)]
    failed = save_all(
        (options.json, lambda path: write_whole(path, json.dumps(demo.to_dict(), indent=1) + "\n")),
        (options.plot, lambda path: _draw(demo, path)),
    )
    for line in failed or [f"{what}: {path}" for what, path in files if path]:
        screen.note(line)
    return int(bool(failed))


def _draw(demo: Demo, path: str) -> None:
    from torchgil.cli.demo.picture import draw

    draw(demo.to_dict(), path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchgil demo",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="ten seconds in place of half a minute")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "mps"),
        default="cpu",
        help="an accelerator for section 4; the others are about the CPU (default: cpu)",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--plot", type=output_file, metavar="FILE", help="draw a picture (needs matplotlib)")
    return parser


def _measure(options: argparse.Namespace, screen: Screen) -> Demo:
    """Each section, shown as soon as it is measured."""
    quick = options.quick
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
        fourth: accelerator.Accelerator | str = accelerator.why_not(options.device) or accelerator.measure(
            options.device, screen.progress
        )
        screen.accelerator(fourth)
    machine["other_load_cores"] = load.cores()
    screen.footer(machine)
    return Demo(machine, first, second, third, fourth)
