"""``torchgil watch``: runs a script and names the lines that hold the GIL, as they do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torchgil._files import write_json
from torchgil.cli import script
from torchgil.cli.output import add_files, output_file, save_files, unlimited
from torchgil.cli.streams import Stderr

if TYPE_CHECKING:
    from torchgil.watching import LongHold

__all__ = ["main"]

_EPILOG = """\
examples:
  torchgil watch serve.py --port 8000
  torchgil watch --threshold 20ms --stacks -m my_package.serve
  torchgil watch --fail -m pytest tests/test_serving.py
  torchgil watch --hang 5s --exit-after 60s serve.py

The script's output, exit code and exceptions are its own; what is found goes to stderr.
Calls that release the GIL, and Python code, which gives way by itself, are never named.
A hold that lasts longer than --hang is reported while it goes on, with the stacks of the
thread that holds the GIL and of those that wait for it, and again after 2, 4, 8 times as long.
Where --exit-after ends the process, no Python code can run any more, and so neither the table
nor the file of --json can be written: what is left is the report, which --hang-output keeps.
"""


def main(argv: list[str]) -> int:
    """Returns the script's exit code; 3 where it is 0 but --fail is given and something was found."""
    parser = _parser()
    options = script.parse(parser, argv)
    from torchgil.watching import Watchdog
    from torchgil.watching._summary import document, summary

    stderr = Stderr()

    def show(hold: LongHold) -> None:
        stderr.print(f"torchgil: {hold.format() if options.stacks else hold}".rstrip())

    def save(path: str) -> None:
        write_json(path, document(watchdog.holds, watchdog.hangs, options.threshold))

    try:
        watchdog = Watchdog(
            options.threshold,
            on_hold=show,
            max_holds=100_000,
            hang=options.hang,
            on_hang=lambda hang: None,  # it was told of already
            exit_after=options.exit_after,
            hang_output=options.hang_output or stderr.descriptor,
        )
    except ValueError as error:
        parser.error(str(error))
    with watchdog:
        ended = script.run(options.script, options.module)
    if ended.in_a_fork:
        return ended.leave()
    with unlimited():
        failed = save_files(options, json=save)
        stderr.print(f"\n{summary(watchdog.holds, options.threshold)}")
        for line in failed:
            stderr.print(line)
    held = options.fail and watchdog.holds
    return ended.leave(otherwise=script.HELD_TOO_LONG if held else int(bool(failed)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchgil watch",
        usage="torchgil watch [options] (SCRIPT | -m MODULE) [args]",
        description="Runs a script and names each line that holds the GIL too long, as it happens.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--threshold",
        metavar="TIME",
        type=script.duration_argument,
        default=0.05,
        help="name holds that are longer (default 50ms, at least twice the switch interval: 10ms)",
    )
    parser.add_argument(
        "--hang",
        metavar="TIME",
        type=script.duration_argument,
        default=10.0,
        help="report a hold that is longer while it goes on (default 10s)",
    )
    parser.add_argument(
        "--hang-output",
        metavar="FILE",
        type=output_file,
        help="append these reports to a file (default: stderr)",
    )
    parser.add_argument(
        "--exit-after",
        metavar="TIME",
        type=script.duration_argument,
        help="end the process, with exit code 70, where one hold lasts so long (at least --hang)",
    )
    parser.add_argument("--stacks", action="store_true", help="show the whole stack of each")
    add_files(parser, json="write what was found as JSON")
    parser.add_argument("--fail", action="store_true", help="exit code 3 if something was found, for CI")
    script.add_script_arguments(parser)
    return parser
