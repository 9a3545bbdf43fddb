"""``torchgil watch``: runs a script and names the lines that hold the GIL, as they do."""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from torchgil._files import write_whole
from torchgil.cli import script
from torchgil.cli.output import output_file, save_all, unlimited
from torchgil.cli.streams import Stderr

if TYPE_CHECKING:
    from torchgil.watching import LongHold

__all__ = ["main", "summary"]

HELD_TOO_LONG = 3  # the exit code of --fail

_EPILOG = """\
examples:
  torchgil watch serve.py --port 8000
  torchgil watch --threshold 20ms --stacks -m my_package.serve
  torchgil watch --fail -m pytest tests/test_serving.py

The script's output, exit code and exceptions are its own; what is found goes to stderr.
Calls that release the GIL, and Python code, which gives way by itself, are never named.
"""


def main(argv: list[str]) -> int:
    """Returns the script's exit code; 3 where it is 0 but --fail is given and something was found."""
    parser = _parser()
    options = script.parse(parser, argv)
    from torchgil.watching import Watchdog

    stderr = Stderr()

    def show(hold: LongHold) -> None:
        stderr.print(f"torchgil: {hold.format() if options.stacks else hold}".rstrip())

    def save(path: str) -> None:
        write_whole(path, json.dumps(_to_dict(watchdog.holds, options.threshold), indent=1) + "\n")

    try:
        watchdog = Watchdog(options.threshold, on_hold=show, max_holds=100_000)
    except ValueError as error:
        parser.error(str(error))
    pid = os.getpid()
    with watchdog:
        ended = script.run(options.script, options.module)
    if os.getpid() != pid:
        return ended.leave()  # a fork of the script's that ran to its end
    with unlimited():
        failed = save_all((options.json, save))
        stderr.print(f"\n{summary(watchdog.holds, options.threshold)}")
        for line in failed:
            stderr.print(line)
    held = options.fail and watchdog.holds
    return ended.leave(otherwise=HELD_TOO_LONG if held else int(bool(failed)))


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
    parser.add_argument("--stacks", action="store_true", help="show the whole stack of each")
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write what was found as JSON")
    parser.add_argument("--fail", action="store_true", help="exit code 3 if something was found, for CI")
    script.add_script_arguments(parser)
    return parser


def summary(holds: list[LongHold], threshold_s: float) -> str:
    """A table, one row per line of code, the greatest sum first."""
    from torchgil._formatting import duration, table

    if not holds:
        return f"torchgil: no hold of the GIL over {duration(threshold_s)} was met"
    by_line: defaultdict[str, list[LongHold]] = defaultdict(list)
    for hold in holds:
        place = f"{hold.filename}:{hold.lineno} in {hold.function}" if hold.stack else hold.thread_name
        caller = hold.caller
        if caller:
            place += f", called from {caller.filename}:{caller.lineno}"
        by_line[place].append(hold)
    rows = [
        (
            place,
            str(len(found)),
            duration(sum(hold.duration_s for hold in found)),
            duration(max(hold.duration_s for hold in found)),
            ", ".join(sorted({hold.thread_name for hold in found})),
        )
        for place, found in sorted(by_line.items(), key=lambda entry: -sum(h.duration_s for h in entry[1]))
    ]
    head = ("line", "holds", "sum", "longest", "threads")
    return f"torchgil: holds of the GIL over {duration(threshold_s)}\n{table(head, rows)}"


def _to_dict(holds: list[LongHold], threshold_s: float) -> dict[str, Any]:
    return {
        "format": "torchgil-watch",
        "version": 1,
        "threshold_s": threshold_s,
        "holds": [
            {
                "duration_s": hold.duration_s,
                "queued_s": hold.queued_s,
                "thread_name": hold.thread_name,
                "filename": hold.filename,
                "lineno": hold.lineno,
                "function": hold.function,
                "exact": hold.exact,
                "stack": [[frame.filename, frame.lineno, frame.name] for frame in hold.stack],
            }
            for hold in holds
        ],
    }
