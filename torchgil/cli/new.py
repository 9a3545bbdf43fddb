"""torchgil new: a small, complete extension whose op releases the GIL, with the tests that prove it."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from pathlib import Path

__all__ = ["main"]

_TEMPLATE = Path(__file__).parent.parent / "template"
_PLACEHOLDER = "my_op"
_SUFFIX = ".tpl"  # a template is no Python file that a linter or pytest would find here
# Its package would hide theirs, or its op library be theirs.
_TAKEN = {*sys.stdlib_module_names, *keyword.kwlist, "aten", "prim", "prims", "tests", "torch", "torchgil"}


def main(argv: list[str]) -> int:
    """Writes DIR/NAME; returns the exit code (2: it cannot be written, and nothing was)."""
    parser = argparse.ArgumentParser(prog="torchgil new", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="of the package, its folder and its op library")
    parser.add_argument("--dir", type=Path, default=Path(), help="where to put the folder (here)")
    options = parser.parse_args(argv)
    folder = options.dir / options.name
    reason = _unfit(options.name)
    if reason is None and (folder.exists() or folder.is_symlink()):
        reason = f"{folder} exists already: nothing was written"
    if reason is None:
        try:
            _write(options.name, folder)
        except OSError as error:
            reason = f"{folder} cannot be written: {error}"
    if reason is not None:
        print(f"torchgil new: {reason}", file=sys.stderr)
        return 2
    print(f"{folder} is there. Build it and run its tests:\n")
    print(f"  cd {folder}\n  pip install --no-build-isolation -e .\n  pytest")
    return 0


def _unfit(name: str) -> str | None:
    """Why this cannot be the name of a package, a C++ namespace and a distribution; None: it can."""
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?", name):
        return (
            f"{name!r} cannot be imported: use letters, digits and underscores, with a letter first "
            "and no underscore last"
        )
    if name in _TAKEN:
        return f"{name!r} is taken, by Python or by torch: choose another name"
    return None


def _write(name: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    for source in sorted(_TEMPLATE.rglob(f"*{_SUFFIX}")):
        path = source.relative_to(_TEMPLATE).as_posix().removesuffix(_SUFFIX)
        target = folder / path.replace(_PLACEHOLDER, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8").replace(_PLACEHOLDER, name), encoding="utf-8")
