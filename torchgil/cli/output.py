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
    "add_files",
    "add_report_files",
    "check_files",
    "files_of",
    "output_file",
    "print_all",
    "save_files",
    "save_report",
    "unlimited",
]

_DEPTH = 1000  # of calls, python's own limit

# Kind of a file -> how its name ends. What another ends with, too, stands after that one.
_ENDS = {
    "trace": (".trace.json",),
    "json": (".json",),
    "plot": (".png", ".svg", ".pdf"),
    "html": (".html",),
}


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
    try:
        os.stat(path)
        known = path
    except FileNotFoundError:
        known = folder
    except OSError as error:  # a name too long, a link to itself
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from None
    if not os.access(known, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def print_all(shown: str, failed: list[str]) -> None:
    """Prints a command's result, and on stderr what `save_files` says of files that could not be written."""
    with for_whoever_reads():
        print(shown)
        for line in failed:
            print(line, file=sys.stderr)


def add_files(
    parser: argparse.ArgumentParser, *, path: Callable[[str], str] = output_file, **purposes: str
) -> None:
    """The options of a command that writes files: one for each kind, and ``-o``, which goes by the name.

    Args:
        parser: Theirs.
        path: What a file's name must be, as argparse's ``type``.
        **purposes: What each kind of file is for, in words; the kinds are those of `_ENDS`.
    """
    parser.set_defaults(files=[])

    def add(*names: str, kind: Callable[[str], tuple[str, str]], what: str) -> None:
        parser.add_argument(*names, dest="files", action="append", metavar="FILE", type=kind, help=what)

    def of_kind(kind: str) -> Callable[[str], tuple[str, str]]:
        return lambda name: (kind, path(name))

    def by_name(name: str) -> tuple[str, str]:
        for kind in purposes:
            if name.lower().endswith(_ENDS[kind]):
                return kind, path(name)
        raise argparse.ArgumentTypeError(f"a name that ends with {ends} is expected, got {name!r}")

    purposes = {kind: purposes[kind] for kind in _ENDS if kind in purposes}
    ends = " or ".join(end for kind in purposes for end in _ENDS[kind])
    for kind, what in purposes.items():
        add(f"--{kind}", kind=of_kind(kind), what=what)
    add("-o", "--output", kind=by_name, what=f"likewise, by the end of its name: {ends}")


def add_report_files(parser: argparse.ArgumentParser) -> None:
    """The options of every command that has a report to write."""
    add_files(
        parser,
        json="write the report as JSON, which torchgil report opens again",
        trace="write the timeline as a Chrome trace",
        plot="draw the timeline as a picture",
        html="write tables and timeline as a page",
    )


def files_of(options: argparse.Namespace, kind: str) -> list[str]:
    """The paths of the files of that kind that were asked for."""
    return [path for each, path in options.files if each == kind]


def check_files(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the process where a picture cannot be drawn: before the work, not after an hour of it."""
    pictures = files_of(options, "plot")
    if not pictures:
        return
    needs("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg")
    from matplotlib.backend_bases import FigureCanvasBase

    for path in pictures:
        end = os.path.splitext(path)[1][1:].lower()
        if end and end not in FigureCanvasBase.filetypes:
            parser.error(f"matplotlib draws no picture whose name ends with .{end}: {path}")


def save_files(options: argparse.Namespace, **savers: Callable[[str], object]) -> list[str]:
    """Writes each file that was asked for, its folder too where a script has deleted that.

    Args:
        options: Those of `add_files`.
        **savers: What writes each kind.

    Returns:
        What is to be said of those that could not be written.
    """
    failed = []
    for kind, path in options.files:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # A script may have made errors of warnings, and a warning would be shown amid its own output.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                savers[kind](path)
        except Exception as error:  # the other files are still written, and the report is printed
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            failed.append(f"torchgil: {path} could not be written: {why}")
    return failed


def save_report(report: Report, options: argparse.Namespace) -> list[str]:
    """Writes the files of `add_report_files`; returns what `save_files` does."""
    return save_files(
        options,
        json=report.save_json,
        trace=report.save_chrome_trace,
        plot=report.plot,
        html=report.save_html,
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
