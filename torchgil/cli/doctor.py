"""``torchgil doctor``: what this machine, Python and torch mean for threads."""

from __future__ import annotations

import argparse
import json

from torchgil._files import write_json
from torchgil.cli.output import output_file, print_all, save_all
from torchgil.doctor import advice, examine, render

__all__ = ["main"]

_EPILOG = """\
examples:
  torchgil doctor
  torchgil doctor --json machine.json

It takes about a second, and burns one core meanwhile. The exit code is 1 if torchgil, or the half
of it for the torch that is here, does not work; otherwise 0.
"""


def main(argv: list[str]) -> int:
    """Prints what it found; returns 1 where an extension of torchgil's cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="torchgil doctor",
        description="Says what this machine, Python and torch mean for threads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", metavar="FILE", type=_output, help="write it as JSON as well; - for stdout alone"
    )
    options = parser.parse_args(argv)
    facts = examine()
    data = {"format": "torchgil-doctor", "version": 1, **facts, "advice": advice(facts)}
    if options.json == "-":
        shown, failed = json.dumps(data, indent=1), []
    else:
        shown, failed = render(facts), save_all((options.json, lambda path: write_json(path, data)))
    print_all(shown, failed)
    unfit = facts["extension_error"] or (facts["torch"] and facts["torch_error"])
    return 1 if unfit or failed else 0


def _output(path: str) -> str:
    return path if path == "-" else output_file(path)
