"""Runs a user's script or module as ``python`` itself would, and says how it ended."""

from __future__ import annotations

import argparse
import importlib.machinery
import io
import os
import re
import runpy
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

__all__ = ["add_script_arguments", "duration_argument", "parse", "run"]


def run(script: list[str] | None, module: list[str] | None) -> int:
    """Runs ``[SCRIPT, args...]``, or ``[MODULE, args...]`` as ``-m`` does, as ``__main__``.

    Waits for the threads that the interpreter would wait for at its end. The
    exceptions are shown as the script's own.

    Returns:
        The exit code that ``python`` would have ended with.
    """
    run_it, arguments = _module(module) if module else _script(script or [])
    sys.argv = arguments
    try:
        try:
            run_it()
        finally:
            _wait_for_threads()
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        _show(error)
        return 130
    except BaseException as error:
        _show(error)
        return 1
    finally:
        _flush()
    return 0


def _script(command: list[str]) -> tuple[Callable[[], Any], list[str]]:
    path = command[0]
    if os.path.isdir(path) or path.endswith((".zip", ".pyz")):
        return lambda: runpy.run_path(path, run_name="__main__"), command
    with io.open_code(path) as file:
        source = file.read()
    _look_first_in(os.path.dirname(os.path.abspath(path)))
    main = types.ModuleType("__main__")
    main.__file__ = os.path.abspath(path)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)

    def execute() -> None:
        # It stays __main__ after its end: threads and exit handlers still look into it.
        sys.modules["__main__"] = main
        # Not with this file's own __future__ imports.
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)

    return execute, command


def _module(command: list[str]) -> tuple[Callable[[], Any], list[str]]:
    _look_first_in(os.getcwd())
    return lambda: runpy.run_module(command[0], run_name="__main__", alter_sys=True), command


def _look_first_in(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):  # python -P, from 3.11 on
        sys.path.insert(0, folder)


def _wait_for_threads() -> None:
    """What the interpreter does at its end, to the same effect: an executor's idle workers end only then."""
    callbacks: list[Callable[[], object]] = threading._threading_atexits  # type: ignore[attr-defined]
    while callbacks:
        callbacks.pop()()
    while threads := [
        t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon
    ]:
        threads[0].join()


def _show(error: BaseException) -> None:
    """The traceback without the frames of this file, runpy and what called them."""
    ours = (__file__, runpy.__file__, f"<frozen {runpy.__name__}>")
    traceback = error.__traceback__
    while traceback and traceback.tb_frame.f_code.co_filename in ours:
        traceback = traceback.tb_next
    _flush()
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # pythonw has none
            stream.flush()


def add_script_arguments(parser: argparse.ArgumentParser) -> None:
    """What to run, for every command that runs a script; `run` takes both values."""
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as python -m does")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script, and its arguments")


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The options, after making sure that there is something to run; ends the process where there is not."""
    options = parser.parse_args(argv)
    if not options.module and not options.script:
        parser.error("a SCRIPT, or -m MODULE, is needed")
    if not options.module and not os.path.exists(options.script[0]):
        parser.error(f"no such script: {options.script[0]}")
    return options


def duration_argument(text: str) -> float:
    """Seconds, from ``5ms``, ``50us``, ``1.5s`` or a plain number of seconds.

    >>> duration_argument("5ms"), duration_argument("0.25")
    (0.005, 0.25)
    """
    match = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)(s|ms|us|)", text)
    try:
        seconds = float(match[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "": 1.0}[match[2]] if match else 0.0
    except ValueError:  # 1.2.3
        seconds = 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(
            f"a duration such as 5ms, 50us or 0.25 (seconds) is expected, got {text!r}"
        )
    return seconds
