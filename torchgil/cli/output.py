"""The files that a command writes. A path that cannot be written is refused before the work begins."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torchgil._terminal import for_whoever_reads
from torchgil.cli import needs

if TYPE_CHECKING:
    from torchgil.tracing import Report

__all__ = [
    "add_report_files",
    "need_for_report",
    "output_file",
    "print_all",
    "save_all",
    "save_report",
    "unlimited",
]

_DEPTH = 1000  # of calls, python's own limit


def output_file(path: str) -> str:
    """An option's file, as argparse's ``type``.

    It becomes absolute, since a script may change the current folder. It is not normalised, since behind a
    symbolic link ``..`` is another folder.
    """
    try:
        path = os.path.join(os.getcwd(), path)
    except OSError:
        if not os.path.isabs(path):
            raise argparse.ArgumentTypeError(f"the current folder is gone, so there is no {path}") from None
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"no folder {folder} for {os.path.basename(path)}")
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def save_all(*files: tuple[str | None, Callable[[str], object]]) -> list[str]:
    """Writes each file that was asked for, its folder too where a script has deleted that.

    Returns:
        What is to be said of those that could not be written.
    """
    failed = []
    for path, save in files:
        if path is None:
            continue
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # A script may have made errors of warnings, and a warning would be shown amid its own output.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                save(path)
        except Exception as error:  # the other files are still written, and the report is printed
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            failed.append(f"torchgil: {path} could not be written: {why}")
    return failed


def print_all(shown: str, failed: list[str]) -> None:
    """Prints a command's result, and on stderr what `save_all` says of files that could not be written."""
    with for_whoever_reads():
        print(shown)
        for line in failed:
            print(line, file=sys.stderr)


def add_report_files(parser: argparse.ArgumentParser) -> None:
    """The options of every command that has a report to write."""
    for name, what in (
        ("--json", "write the report as JSON, which torchgil report opens again"),
        ("--trace", "write the timeline as a Chrome trace"),
        ("--plot", "draw the timeline as a picture"),
        ("--html", "write tables and timeline as a page"),
    ):
        parser.add_argument(name, metavar="FILE", type=output_file, help=what)


def need_for_report(options: argparse.Namespace) -> None:
    """Exits where something is not installed that `save_report` needs."""
    if options.plot:
        needs("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg")


def save_report(report: Report, options: argparse.Namespace) -> list[str]:
    """Writes what was asked for; returns what `save_all` does."""
    return save_all(
        (options.json, report.save_json),
        (options.trace, report.save_chrome_trace),
        (options.plot, report.plot),
        (options.html, report.save_html),
    )


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """A block without the limits that a script has set for itself, as far as the process may lift them."""
    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(max(depth, _DEPTH))
    try:
        with _resources():
            yield
    finally:
        with contextlib.suppress(RecursionError):  # too low for where we are
            sys.setrecursionlimit(depth)


@contextlib.contextmanager
def _resources() -> Iterator[None]:
    try:
        import resource
    except ImportError:  # not POSIX
        yield
        return
    before = {}
    for name in ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
        which = getattr(resource, name)
        before[which] = soft, hard = resource.getrlimit(which)
        if soft != hard:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(which, (hard, hard))
    try:
        yield
    finally:
        for which, limits in before.items():
            if resource.getrlimit(which) != limits:
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(which, limits)
