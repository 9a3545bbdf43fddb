"""``torchgil doctor``: what this machine, Python and torch mean for threads."""

from __future__ import annotations

import argparse
import json

from torchgil._files import write_json
from torchgil._terminal import Progress, slow
from torchgil.cli.output import add_files, files_of, output_file, print_all, save_files
from torchgil.doctor import advice, examine, render

__all__ = ["main"]

_EPILOG = """\
examples:
  torchgil doctor
  torchgil doctor -o machine.json

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
    add_files(parser, path=_output, json="write it as JSON as well; --json - for stdout alone")
    options = parser.parse_args(argv)
    with slow("looking", Progress()):
        facts = examine()
    data = {"format": "torchgil-doctor", "version": 1, **facts, "advice": advice(facts)}
    alone = "-" in files_of(options, "json")
    options.files = [file for file in options.files if file != ("json", "-")]
    shown = json.dumps(data, indent=1) if alone else render(facts)
    failed = save_files(options, json=lambda path: write_json(path, data))
    print_all(shown, failed)
    unfit = facts["extension_error"] or (facts["torch"] and facts["torch_error"])
    return 1 if unfit or failed else 0


def _output(path: str) -> str:
    return path if path == "-" else output_file(path)
