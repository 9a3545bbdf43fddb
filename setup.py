"""Builds torchgil._C, the one C++ extension.

DEBUG=1 builds with assertions and symbols (`make debug`), SANITIZE=address or SANITIZE=thread with that
sanitizer (`make asan`, `make tsan`), COVERAGE=1 counts the lines that run (`make coverage`), MAX_JOBS=n
limits the compiler processes. TORCH_IN_VERSION=1 (`make wheel`) makes the torch it is built for part of
the wheel's name.
"""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "torchgil is compiled against the torch it will run with, and this environment has none "
        f"({error}). Install torch first, or build in isolation: pip install ."
    ) from error

ROOT = Path(__file__).parent
SUPPORT = runpy.run_path(str(ROOT / "torchgil" / "_support.py"))
if message := SUPPORT["objection"](torch.__version__):
    raise SystemExit(message)
if message := SUPPORT["untried"](torch.__version__):
    print(f"warning: {message}", file=sys.stderr)
DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("SANITIZE", "")
SANITIZER_FLAGS = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
# Threads count at once; what they count is written when the process ends.
COVERAGE_FLAGS = ["--coverage", "-fprofile-update=atomic"] if os.environ.get("COVERAGE") else []
# "2.13.0+cpu" and "2.13.0+cu130" have the same C++ interface: the local label is no part of the pin.
TORCH_VERSION = torch.__version__.split("+")[0]
# Several wheels of one version can lie side by side then. Not in an sdist, which is for any torch.
LOCAL_VERSION = "+torch{}.{}".format(*SUPPORT["series"](TORCH_VERSION))

# What is compiled as one: torch's headers are most of what a file costs, and so are read three times, not
# forty: half the build's time.
TOGETHER = {
    "ops": ["ops/*.cpp"],
    "forward": ["forward/*.cpp"],
    "tracing": ["module.cpp", "priority/*.cpp", "redirect/*.cpp", "threads/*.cpp", "tracing/*.cpp"],
}
ALONE = ["csrc/tracing/gil_holder.cpp"]  # it reads the interpreter's own headers


def sources() -> list[str]:
    """Paths below here of what is compiled; those of TOGETHER are written."""
    written = []
    for name, patterns in TOGETHER.items():
        found = [path for pattern in patterns for path in sorted((ROOT / "csrc").glob(pattern))]
        included = [
            path.relative_to(ROOT / "csrc") for path in found if str(path.relative_to(ROOT)) not in ALONE
        ]
        text = "".join(f'#include "{path.as_posix()}"\n' for path in included)
        path = ROOT / "build" / "together" / f"{name}.cpp"
        if not path.exists() or path.read_text() != text:  # a new date would compile it anew
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        written.append(str(path.relative_to(ROOT)))
    return [*written, *ALONE]


def is_clang() -> bool:
    """Whether the compiler is clang, whose OpenMP is not the one that torch has loaded: see COMPILE_FLAGS."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), "--version"]
    try:
        return "clang" in subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:  # there is none: the build will say so
        return False


COMPILE_FLAGS = [
    "-std=c++20",  # as torch's own headers are by now; those of 2.9 do not mind
    "-Wall",  # our own sources are clean of both: keep them so
    "-Wextra",
    "-Wno-unused-parameter",  # torch's and pybind11's headers are full of them
    "-fvisibility=hidden",  # pybind11 asks for it: its types must not clash with another extension's
    # at::parallel_for is a template over `#pragma omp`: without this it runs serially. Compile time
    # only: not linking it lets GOMP_* resolve to the one OpenMP runtime that torch has loaded. What clang
    # makes of it needs a runtime of its own, which would not know of torch.set_num_threads.
    *([] if is_clang() else ["-fopenmp"]),
    # After Python's own flags, and so stronger: debuggable with assertions, or as fast as torch's
    # kernels and without the symbols that take a third of the build's time.
    *(["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-DNDEBUG", "-g0"]),
    # A sanitizer's report names lines and whole stacks.
    *([*SANITIZER_FLAGS, "-O1", "-g1", "-fno-omit-frame-pointer"] if SANITIZE else []),
    *([*COVERAGE_FLAGS, "-O0"] if COVERAGE_FLAGS else []),
]


def include_dirs() -> list[str]:
    """Our own headers, and pybind11's where torch does not bundle them."""
    own = [str(ROOT / "csrc"), str(ROOT / "torchgil" / "include")]
    bundled = Path(torch.__file__).parent / "include" / "pybind11" / "pybind11.h"
    if bundled.exists():
        return own
    # A distribution unbundled pybind11. Ours must be of the same internals version as torch's, or
    # torch's exception translators are not shared.
    import pybind11

    return [*own, pybind11.get_include()]


class BuildAndRecord(BuildExtension):
    """BuildExtension that also writes down which torch the extension was compiled for."""

    def run(self) -> None:
        super().run()
        built = Path(self.get_ext_fullpath("torchgil._C"))
        if message := SUPPORT["compiler_objection"](built):
            raise SystemExit(message)
        package = built.parent
        package.mkdir(parents=True, exist_ok=True)
        (package / "_built_for.py").write_text(
            '"""Written by setup.py: what torchgil._C was compiled for."""\n\n'
            f'TORCH_VERSION = "{TORCH_VERSION}"\n'
            f'PYTHON_VERSION = "{sys.version_info.major}.{sys.version_info.minor}"\n'
        )


setup(
    ext_modules=[
        CppExtension(
            "torchgil._C",
            sources(),
            include_dirs=include_dirs(),
            extra_compile_args={"cxx": COMPILE_FLAGS},
            extra_link_args=[*SANITIZER_FLAGS, *COVERAGE_FLAGS],
        )
    ],
    cmdclass={"build_ext": BuildAndRecord},
    install_requires=[f"torch=={TORCH_VERSION}"],
    options={"egg_info": {"tag_build": LOCAL_VERSION}} if os.environ.get("TORCH_IN_VERSION") else {},
)
