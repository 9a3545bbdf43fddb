"""torchgil demo: see the GIL released and held, on real tensors, in one screen and one picture."""

from __future__ import annotations

import argparse

from torchgil._files import write_json
from torchgil.cli.output import add_files, check_files, save_files
from torchgil.demo import Screen, draw, measure

__all__ = ["main"]

_EXAMPLES = """\
examples:
  torchgil demo                         half a minute, on the CPU
  torchgil demo --quick                 ten seconds, rougher figures
  torchgil demo -o demo.png             the same, and a picture of it
  torchgil demo -o demo.json            the figures, for a script
  torchgil demo --device cuda           also queue work on a GPU and wait for it
  torchgil demo | less                  plain text when piped
"""


def main(argv: list[str]) -> int:
    """Measures, shows each section when it is ready, writes the files asked for."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_files(parser, options)
    screen = Screen()
    demo = measure(screen, quick=options.quick, device=options.device).to_dict()
    failed = save_files(options, json=lambda path: write_json(path, demo), plot=lambda path: draw(demo, path))
    names = {"json": "figures", "plot": "picture"}
    for line in failed or [f"{names[kind]}: {path}" for kind, path in options.files]:
        screen.note(line)
    return int(bool(failed))


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
    add_files(parser, json="write every figure to FILE", plot="draw a picture (needs matplotlib)")
    return parser
