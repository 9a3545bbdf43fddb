"""Runs a user's script or module as ``python`` itself would, and says how it ended."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import faulthandler
import importlib.machinery
import io
import math
import os
import pkgutil
import re
import runpy
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "HELD_TOO_LONG",
    "Ended",
    "add_script_arguments",
    "count_argument",
    "duration_argument",
    "parse",
    "run",
]


HELD_TOO_LONG = 3  # the exit code of a command that was to fail where the GIL was held for long, and it was


@dataclass(frozen=True, slots=True)
class Ended:
    """How a script ended."""

    code: int
    interrupted: bool = False  # by a Ctrl-C that it did not catch
    in_a_fork: bool = False  # this process is a fork that the script made, and that ran to the script's end

    def leave(self, otherwise: int = 0) -> int:
        """The exit code that python would end with, `otherwise` where that is 0.

        Does not return after a Ctrl-C that nobody caught: python then ends by the signal, so that a shell
        ends its loop, too.
        """
        if self.interrupted:
            sys.excepthook = lambda kind, error, traceback: None  # it was shown
            raise KeyboardInterrupt
        return self.code or otherwise


def run(script: list[str] | None, module: list[str] | None) -> Ended:
    """Runs ``[SCRIPT, args...]``, or ``[MODULE, args...]`` as ``-m`` does, as ``__main__``.

    Shows its exception as python would, then waits for the threads that the interpreter would wait for at
    its end. Whatever the script did to its streams, this returns.
    """
    run_it, sys.argv = _module(module) if module else _script(script or [])
    pid = os.getpid()
    ended = _run(run_it)
    error = _error_of(_wait_for_threads)
    if error is not None:  # Ctrl-C, or a callback's own: python says so and goes on
        _show(error)
    _flush()
    _disarm()
    return Ended(ended.code, ended.interrupted, in_a_fork=os.getpid() != pid)


def _run(run_it: Callable[[], Any]) -> Ended:
    error = _error_of(run_it)
    # Handled outside of any `except`, as python does, so that what an excepthook raises has no context.
    if error is None:
        return Ended(0)
    if isinstance(error, SystemExit):
        return Ended(_exit_code(error))
    if isinstance(error, KeyboardInterrupt):
        _show(error)
        return Ended(128 + signal.SIGINT, interrupted=True)
    return Ended(_show(error))


def _error_of(run_it: Callable[[], Any]) -> BaseException | None:
    # A tracer or profiler that the script leaves set would otherwise trace the making of the report, too.
    tracer, profiler = sys.gettrace(), sys.getprofile()
    try:
        run_it()
    except BaseException as error:
        return error
    finally:
        sys.setprofile(profiler)
        sys.settrace(tracer)
    return None


def _exit_code(error: SystemExit) -> int:
    """What python makes of an exception that ends it."""
    code: object = error
    with contextlib.suppress(Exception):  # a subclass may make a property of it
        code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        # As python hands it to the system: a C int, -1 where it does not fit into a C long.
        return int(code) & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    _flush()
    with contextlib.suppress(Exception):
        print(code, file=_stderr())
    return 1


def _script(command: list[str]) -> tuple[Callable[[], Any], list[str]]:
    path = command[0]
    if pkgutil.get_importer(path) is not None:  # a folder or an archive, whatever its name ends with
        sys.path.insert(0, os.path.join(os.getcwd(), path))
        return lambda: _run_module("__main__", alter_argv=False), command
    with io.open_code(path) as file:
        source = file.read()
    _look_first_in(os.path.dirname(os.path.realpath(path)))

    def execute() -> None:
        main = _new_main()
        main.__file__ = os.path.abspath(path)
        code = pkgutil.read_code(io.BytesIO(source))
        if code is not None:  # compiled before
            main.__loader__ = importlib.machinery.SourcelessFileLoader("__main__", path)
        else:
            main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
            # Not with this file's own __future__ imports.
            code = compile(source, path, "exec", dont_inherit=True)
        exec(code, main.__dict__)

    return execute, command


def _module(command: list[str]) -> tuple[Callable[[], Any], list[str]]:
    with contextlib.suppress(OSError):  # the folder is gone
        _look_first_in(os.getcwd())
    return lambda: _run_module(command[0]), ["-m", *command[1:]]


def _run_module(name: str, *, alter_argv: bool = True) -> None:
    """Runs it as `python -m` does, by the function that python itself calls.

    `runpy.run_module` takes the module out of `sys.modules` where it ends, and what threads and exit handlers
    look for in it, as pickle does, would not be there.
    """
    _new_main()
    runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]


def _new_main() -> types.ModuleType:
    """A `__main__` with what python has in it before it runs anything. It stays after the script's end."""
    main = types.ModuleType("__main__")
    given: dict[str, Any] = {"__annotations__": {}, "__cached__": None}  # not by every python
    before = vars(sys.modules["__main__"])
    main.__dict__.update({name: value for name, value in given.items() if name in before})
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main


def _look_first_in(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):  # python -P, from 3.11 on
        sys.path.insert(0, folder)


def _wait_for_threads() -> None:
    """Does what the interpreter does at its end: only then do an executor's idle workers end."""
    callbacks: list[Callable[[], object]] = threading._threading_atexits  # type: ignore[attr-defined]
    while callbacks:
        callbacks.pop()()
    while threads := [
        t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon
    ]:
        threads[0].join()


def _show(error: BaseException) -> int:
    """Has the exception shown as python would; returns the exit code."""
    error = _trimmed(error)
    _flush()
    another = _error_of(lambda: sys.excepthook(type(error), error, error.__traceback__))
    if isinstance(another, SystemExit):
        return _exit_code(another)
    if another is not None:
        with contextlib.suppress(Exception):
            print("Error in sys.excepthook:", file=_stderr())
            traceback.print_exception(_trimmed(another), file=_stderr())
            print("\nOriginal exception was:", file=_stderr())
            traceback.print_exception(error, file=_stderr())
    return 1


def _trimmed(error: BaseException) -> BaseException:
    """The exception without the frames of this file. Those of runpy stay: `python -m` shows them as well."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return error.with_traceback(trace)


def _disarm() -> None:
    """Cancels the timers that the script has left: under python nothing would run any more when they fire."""
    faulthandler.cancel_dump_traceback_later()
    if hasattr(signal, "setitimer"):
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)


def _stderr() -> Any:
    # print(file=None) would write to stdout.
    return sys.stderr or sys.__stderr__ or io.StringIO()


def _flush() -> None:
    """Flushes both streams. One that cannot be flushed fails again as the interpreter ends, which says so."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def add_script_arguments(parser: argparse.ArgumentParser) -> None:
    """What to run, for every command that runs a script; `run` takes both values."""
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as python -m does")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script, and its arguments")


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The options, after making sure that there is something to run; ends the process where there is not."""
    options = parser.parse_args(argv)
    if options.module and options.script:  # a "--" among the module's own arguments, where argparse stops
        options.module += options.script
        options.script = []
    elif options.script[:1] == ["--"]:  # "no more options of ours", as with other programs
        del options.script[0]
    if not options.module and not options.script:
        parser.error("a SCRIPT, or -m MODULE, is needed")
    if not options.module and not os.path.exists(options.script[0]):
        parser.error(f"no such script: {options.script[0]}")
    if not options.module and not os.access(options.script[0], os.R_OK):
        parser.error(f"{options.script[0]} cannot be read")
    return options


def count_argument(low: int, high: int | None = None) -> Callable[[str], int]:
    """An option's whole number, as argparse's ``type``."""

    def count(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        if number is None or number < low or (high is not None and number > high):
            upper = "" if high is None else f" to {high}"
            raise argparse.ArgumentTypeError(
                f"a whole number from {low}{upper} is expected, got {text[:40]!r}"
            )
        return number

    return count


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
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(
            f"a duration such as 5ms, 50us or 0.25 (seconds) is expected, got {text!r}"
        )
    return seconds
