"""``torchgil report``: shows a report again that was saved, here or on another machine."""

from __future__ import annotations

import argparse
import contextlib
import sys

from torchgil._formatting import one_line
from torchgil._terminal import Progress, slow
from torchgil.cli import script
from torchgil.cli.output import add_report_files, check_files, files_of, print_all, save_report
from torchgil.cli.streams import Stderr

__all__ = ["main"]

_EPILOG = """\
examples:
  torchgil audit -o report.json serve.py     # or report.save_json("report.json")
  torchgil report report.json
  torchgil report report.json --top 50 -o gil.trace.json -o gil.png -o report.html

A .trace.json opens in ui.perfetto.dev and chrome://tracing.
"""


def main(argv: list[str]) -> int:
    """Returns 0; 2 where the report cannot be read, and 1 where a file cannot be written."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_files(parser, options)
    from torchgil.tracing import Report
    from torchgil.tracing._text import render

    progress = Progress()
    try:
        with slow(f"reading {one_line(options.report)}", progress):
            report = Report.load(options.report)
        if not report.has_timeline and (files_of(options, "trace") or files_of(options, "plot")):
            raise ValueError(f"{options.report} was saved without its timeline, so there is nothing to draw")
    except (OSError, ValueError) as error:
        why = f"{options.report}: {error.strerror}" if isinstance(error, OSError) else str(error)
        Stderr().print(f"torchgil report: {one_line(why)}")
        return 2
    with contextlib.suppress(AttributeError, ValueError):  # no stream that has an encoding
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with slow("writing", progress):
        failed = save_report(report, options)
        rendered = render(report, top=options.top)
    print_all(rendered, failed)
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchgil report",
        description="Shows a report again that torchgil audit --json, or report.save_json(), wrote.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("report", metavar="REPORT", help="the file that it was saved to")
    parser.add_argument(
        "--top", metavar="N", type=script.count_argument(0), default=15, help="ops in the table (default 15)"
    )
    add_report_files(parser)
    return parser
