"""torchgil demo: see the GIL released and held, on real tensors, in one screen and one picture."""

from __future__ import annotations

import argparse

from torchgil._files import write_json
from torchgil.cli import needs
from torchgil.cli.output import output_file, save_all
from torchgil.demo import Screen, draw, measure

__all__ = ["main"]

_EXAMPLES = """\
examples:
  torchgil demo                         half a minute, on the CPU
  torchgil demo --quick                 ten seconds, rougher figures
  torchgil demo --plot demo.png         the same, and a picture of it
  torchgil demo --json demo.json        the figures, for a script
  torchgil demo --device cuda           also queue work on a GPU and wait for it
  torchgil demo | less                  plain text when piped
"""


def main(argv: list[str]) -> int:
    """Measures, shows each section when it is ready, writes the files asked for."""
    options = _parser().parse_args(argv)
    if options.plot:
        needs("matplotlib")  # before half a minute of measuring, not after
    screen = Screen()
    demo = measure(screen, quick=options.quick, device=options.device).to_dict()
    files = [("figures", options.json), ("picture", options.plot)]
    failed = save_all(
        (options.json, lambda path: write_json(path, demo)), (options.plot, lambda path: draw(demo, path))
    )
    for line in failed or [f"{what}: {path}" for what, path in files if path]:
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
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--plot", type=output_file, metavar="FILE", help="draw a picture (needs matplotlib)")
    return parser
