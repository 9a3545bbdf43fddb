"""The command line: one module per command, loaded when it is called for."""

from __future__ import annotations

import importlib
import sys

from torchgil._version import __version__

__all__ = ["main", "needs"]

# command -> what it is for; each is torchgil/cli/<command>.py with main(argv) -> exit code
COMMANDS = {
    "audit": "run a script, then say who held the GIL, and who waited",
    "report": "show a saved report again: its tables, its timeline, its picture",
    "watch": "run a script and name the lines that hold the GIL, as they do",
    "run": "run a program whose main thread gets the GIL back at once",
    "compare": "threads against processes on your own model",
    "new": "start an extension of your own, whose ops release the GIL, with tests that prove it",
    "doctor": "what this machine, Python and torch mean for threads, and what torchgil can see here",
    "demo": "see the GIL released and held, on real tensors",
}

# What cannot do without an extension, and so says first what is wrong with it; doctor tells of it.
NEEDS = {
    **dict.fromkeys(("compare", "demo"), "torchgil.ops"),
    **dict.fromkeys(("audit", "report", "watch", "run"), "torchgil._gil_half"),
}

_USAGE = "usage: torchgil [--version] COMMAND [options]"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code (2: called wrongly)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    command, *rest = argv
    if command == "--" and rest:
        command, *rest = rest
    elif command == "--version":
        print(f"torchgil {__version__}")
        return 0
    if command not in COMMANDS:
        print(f"torchgil: no command {command!r}\n\n{_help()}", file=sys.stderr)
        return 2
    if command in NEEDS:
        try:
            importlib.import_module(NEEDS[command])
        except ImportError as error:
            print(f"torchgil {command}: {error}", file=sys.stderr)
            return 2
    module = importlib.import_module(f"torchgil.cli.{command}")
    return int(module.main(rest) or 0)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return (
        f"{_USAGE}\n\nWho holds the GIL in a PyTorch program.\n\n"
        f"commands:\n{commands}\n\ntorchgil COMMAND --help says more."
    )


def needs(*modules: str) -> None:
    """Exits with the command that installs them where an optional dependency is missing."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"torchgil: this needs {module}: pip install 'torchgil[cli]'", file=sys.stderr)
            raise SystemExit(2) from None
