"""``torchgil audit``: runs a script under a trace, then says who held the GIL."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchgil._terminal import Progress, slow
from torchgil.cli import script
from torchgil.cli.output import add_report_files, check_files, save_report, unlimited
from torchgil.cli.streams import Stderr

if TYPE_CHECKING:
    from torchgil.tracing import Report
    from torchgil.watching import LongHold

__all__ = ["main"]

_EPILOG = """\
examples:
  torchgil audit train.py --epochs 1
  torchgil audit -o report.json -o gil.trace.json -o gil.png -m my_package.serve
  torchgil audit --fail-if-held 5ms -m pytest tests/test_serving.py

The script's output, exit code and exceptions are its own; the report goes to stderr.
A .trace.json opens in ui.perfetto.dev and chrome://tracing, a report.json with torchgil report.
"""


def main(argv: list[str]) -> int:
    """Returns the script's exit code; 3 where it is 0 but --fail-if-held found a hold."""
    parser = _parser()
    options = script.parse(parser, argv)
    if options.fail_if_held and options.fail_if_held > 3600:
        parser.error(f"--fail-if-held: at most 3600s, got {options.fail_if_held:g}s")
    check_files(parser, options)  # here: a script may change where modules lie
    from torchgil.tracing import trace
    from torchgil.tracing._text import render

    stderr = Stderr()
    with _watching(options.fail_if_held) as long_holds:
        with trace(max_events=options.max_events) as t:
            ended = script.run(options.script, options.module)
    if ended.in_a_fork:  # the trace is its parent's
        return ended.leave()
    with unlimited():
        with slow("torchgil: making the report", Progress(stderr.write if stderr.is_terminal else None)):
            report = t.report()
            failed = save_report(report, options)
            rendered = render(report, top=options.top)
        stderr.print(f"\n{rendered}")
        held = _culprits(report, long_holds, options.fail_if_held) if options.fail_if_held else []
        if held:
            lines = "\n".join(f"  {line}" for line in held)
            stderr.print(f"\ntorchgil: the GIL was held too long:\n{lines}")
        for line in failed:
            stderr.print(line)
    return ended.leave(otherwise=script.HELD_TOO_LONG if held else int(bool(failed)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchgil audit",
        usage="torchgil audit [options] (SCRIPT | -m MODULE) [args]",
        description="Runs a script under a trace of the GIL, then reports who held it, and who waited.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_report_files(parser)
    parser.add_argument(
        "--top", metavar="N", type=script.count_argument(0), default=15, help="ops in the table (default 15)"
    )
    parser.add_argument(
        "--fail-if-held",
        metavar="TIME",
        type=script.duration_argument,
        help="exit code 3 if an op held the GIL for so long (such as 5ms), or a line (twice the switch "
        "interval at least, 10ms; for certain from a quarter more on), for CI",
    )
    parser.add_argument(
        "--max-events",
        metavar="N",
        type=script.count_argument(1, 1 << 32),
        default=10_000_000,
        help="events kept, of 16 bytes each (default 10000000)",
    )
    script.add_script_arguments(parser)
    return parser


@contextlib.contextmanager
def _watching(limit_s: float | None) -> Iterator[list[LongHold]]:
    """With a limit, the watchdog beside the trace: it knows the lines of what is no op."""
    holds: list[LongHold] = []
    if limit_s is None:
        yield holds
        return
    from torchgil.watching import Watchdog

    # A shorter hold it cannot tell from the turn that every Python thread has. One that is longer by 2.1
    # gaps between its looks is met for certain: they come often here, a check is no program that serves.
    threshold = max(limit_s, 2 * sys.getswitchinterval())
    with Watchdog(threshold, on_hold=holds.append, max_holds=100_000, mean_gap=threshold / 10):
        yield holds


def _culprits(report: Report, long_holds: list[LongHold], limit_s: float) -> list[str]:
    from torchgil._formatting import duration, one_line
    from torchgil.tracing._text import COMPILED_REGION

    ops = [
        f"{one_line(op.name)}: up to {duration(op.longest_hold_s)}, "
        f"{op.calls_held} of {op.calls} calls entered with the GIL held"
        for op in report.ops
        if op.longest_hold_s >= limit_s and (not op.user_scope or op.name.startswith(COMPILED_REGION))
    ]
    return ops + [str(hold) for hold in long_holds]
