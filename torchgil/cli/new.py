"""torchgil new: a small, complete extension whose op releases the GIL, with the tests that prove it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import keyword
import re
import secrets
import shutil
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["main"]

_TEMPLATE = Path(__file__).parent.parent / "template"
_PLACEHOLDER = "my_op"
_SUFFIX = ".tpl"  # a template is no Python file that a linter or pytest would find here
# Of Python, of the new folder itself, and of torch, whose op libraries no other of the same name can join.
_TAKEN = {
    *sys.stdlib_module_names,
    *keyword.kwlist,
    *keyword.softkwlist,
    *("build", "csrc", "dist", "setup", "test", "tests", "torch", "torchgil"),
    *(
        "aten",
        "c10d",
        "debugprims",
        "export",
        "inductor",
        "inductor_prims",
        "mkl",
        "mkldnn",
        "onednn",
        "prim",
    ),
    *("prims", "profiler", "quantization", "quantized", "rngprims", "sparse", "static_runtime", "symm_mem"),
}


def main(argv: list[str]) -> int:
    """Writes DIR/NAME; returns the exit code (2: it cannot be written, and nothing was)."""
    parser = argparse.ArgumentParser(prog="torchgil new", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="of the package, its folder and its op library")
    parser.add_argument("--dir", type=Path, default=Path(), help="where to put the folder (here)")
    options = parser.parse_args(argv)
    folder = options.dir / options.name
    try:
        if options.name and (folder.exists() or folder.is_symlink()):
            reason: str | None = f"{folder} exists already: nothing was written"
        else:
            reason = _unfit(options.name)
        if reason is None:
            _write(options.name, folder)
    except OSError as error:
        reason = f"{folder} cannot be written: {error.strerror or error}"
    if reason is not None:
        print(f"torchgil new: {reason}", file=sys.stderr)
        return 2
    print(f"{folder} is there. Build it and run its tests:\n")
    print(f"  cd {folder}\n  pip install --no-build-isolation -e .\n  pytest")
    return 0


def _unfit(name: str) -> str | None:
    """Why this cannot be the name of a package, an op library and a distribution; None: it can."""
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?", name):
        underscored = name.replace("-", "_")
        hint = f": {underscored} could" if underscored != name and _unfit(underscored) is None else ""
        return (
            f"{name!r} cannot be imported{hint}; use letters, digits and underscores, with a letter first "
            "and no underscore last"
        )
    if name in _TAKEN:
        return f"{name!r} is taken, by Python or by torch: choose another name"
    there = _installed(name)
    if there:
        return f"{name!r} is taken, by {there}, which it would hide or replace: choose another name"
    return None


def _installed(name: str) -> str | None:
    """What is installed here under that name."""
    with contextlib.suppress(ValueError):  # a module that does not say where it is from
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:  # else any folder beside us
            return f"the module {spec.origin}"
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"the installed package {metadata.distribution(name).name}"
    return None


def _write(name: str, folder: Path) -> None:
    """All of it or nothing, also where it is interrupted."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".torchgil-{secrets.token_hex(8)}"
    try:
        for source in sorted(_TEMPLATE.rglob(f"*{_SUFFIX}")):
            path = source.relative_to(_TEMPLATE).as_posix().removesuffix(_SUFFIX)
            target = beside / path.replace(_PLACEHOLDER, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8").replace(_PLACEHOLDER, name)
            target.write_text(text, encoding="utf-8")
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
