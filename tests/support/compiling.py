"""Small C++ extensions for tests, compiled by the compiler itself: no build system, no torchgil._C."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import torchgil

TORCH = Path(torch.__file__).parent
TORCH_WANTS_20 = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler (c++) here")


def compile_extension(
    source: Path, *flags: str, includes: Sequence[str] = (), link_torch: bool = False, suffix: str = ""
) -> Path:
    """Compiles `source`, C or C++, into a module of its name beside it; returns the shared object.

    As C++17 where torch's own headers allow that, and with a debug build's assertions. The folders that
    `includes` names come before the installed headers'.
    """
    target = source.with_suffix(suffix or sysconfig.get_config_var("EXT_SUFFIX"))
    folders = [
        *includes,
        torchgil.get_include(),
        TORCH / "include",
        TORCH / "include/torch/csrc/api/include",
        sysconfig.get_path("include"),
    ]
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}"] if link_torch else []
    libraries += [f"-l{name}" for name in ("torch_python", "torch_cpu", "c10") if link_torch]
    standard = "-std=c++20" if link_torch and TORCH_WANTS_20 else "-std=c++17"
    compiler = ["cc", "-std=gnu11"] if source.suffix == ".c" else ["c++", standard]
    command = [*compiler, "-O0", "-fPIC", "-shared", *flags, *(f"-I{folder}" for folder in folders)]
    done = subprocess.run(
        [*command, str(source), *libraries, "-o", str(target)], capture_output=True, text=True, timeout=280
    )
    if done.returncode != 0:
        pytest.fail(f"{source.name} does not compile:\n{done.stderr[-8000:]}")
    return target
