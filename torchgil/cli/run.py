"""``torchgil run``: runs an unmodified program whose main thread gets the GIL back at once."""

from __future__ import annotations

import argparse

from torchgil.cli import script

__all__ = ["main"]

_EPILOG = """\
examples:
  torchgil run --gil-priority train.py --epochs 3
  torchgil run --gil-priority -m my_package.train

The program's output, exit code and exceptions are its own. Threads it starts are as ever; to give
one of them priority: with torchgil.gil_priority(): in its function.
"""


def main(argv: list[str]) -> int:
    """Returns the script's exit code."""
    parser = argparse.ArgumentParser(
        prog="torchgil run",
        usage="torchgil run --gil-priority (SCRIPT | -m MODULE) [args]",
        description="Runs a program as python would, its main thread with priority for the GIL.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--gil-priority",
        action="store_true",
        help="the main thread asks for the GIL at once after each release, not after the switch interval",
    )
    script.add_script_arguments(parser)
    options = script.parse(parser, argv)
    if not options.gil_priority:
        parser.error("nothing to change: --gil-priority is what this command is for; without it use python")
    from torchgil._priority import gil_priority

    with gil_priority():
        ended = script.run(options.script, options.module)
    return ended.leave()
