"""Builds torchgil's two C++ extensions.

torchgil._gil knows the GIL and not torch, and is built always. torchgil._torch knows torch, and is built
where torch is installed, for exactly that one. TORCHGIL_TORCH=0 builds the first alone, TORCHGIL_TORCH=1
fails where the second cannot be built.

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
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSIONS = runpy.run_path(str(ROOT / "torchgil" / "_versions.py"))


def torch_to_build_for() -> Any:
    """The module torch; None where the half that knows it is not to be built."""
    wanted = os.environ.get("TORCHGIL_TORCH", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"TORCHGIL_TORCH must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    try:
        import torch
    except ImportError as error:
        if wanted == "1":
            raise SystemExit(
                "torchgil._torch is compiled against the torch it will run with, and this environment has "
                f"none ({error}). Install torch first, or build in isolation: pip install ."
            ) from error
        print(
            f"warning: there is no torch here ({error}): only the half of torchgil that needs none is built",
            file=sys.stderr,
        )
        return None
    if message := VERSIONS["objection"](torch.__version__):
        raise SystemExit(message)
    if message := VERSIONS["untried"](torch.__version__):
        print(f"warning: {message}", file=sys.stderr)
    return torch


TORCH = torch_to_build_for()
# "2.13.0+cpu" and "2.13.0+cu130" have the same C++ interface: the local label is no part of the pin.
TORCH_VERSION = TORCH.__version__.split("+")[0] if TORCH else None
# Several wheels of one version can lie side by side then. Not in an sdist, which is for any torch.
LOCAL_VERSION = "+torch{}.{}".format(*VERSIONS["series"](TORCH_VERSION)) if TORCH_VERSION else ""

DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("SANITIZE", "")
SANITIZER_FLAGS = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
# Threads count at once; what they count is written when the process ends.
COVERAGE_FLAGS = ["--coverage", "-fprofile-update=atomic"] if os.environ.get("COVERAGE") else []

# What is compiled as one: torch's headers, and pybind11's, are most of what a file costs, and so are read few
# times, not sixty: half the build's time.
GIL = {"gil": ["gil/*.cpp", "gil/*/*.cpp"]}
TORCH_HALF = {
    "ops": ["torch/*.cpp", "torch/ops/*.cpp"],
    "forward": ["torch/forward/*.cpp"],
}
ALONE = "csrc/gil/cpython/gil_holder.cpp"  # it reads the interpreter's own headers


def together(groups: dict[str, list[str]]) -> list[str]:
    """Paths below here of what is compiled; each group's file is written."""
    written = []
    for name, patterns in groups.items():
        found = [path for pattern in patterns for path in sorted((ROOT / "csrc").glob(pattern))]
        included = [path.relative_to(ROOT / "csrc") for path in found if str(path.relative_to(ROOT)) != ALONE]
        text = "".join(f'#include "{path.as_posix()}"\n' for path in included)
        path = ROOT / "build" / "together" / f"{name}.cpp"
        if not path.exists() or path.read_text() != text:  # a new date would compile it anew
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        written.append(str(path.relative_to(ROOT)))
    return written


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
    # After Python's own flags, and so stronger: debuggable with assertions, or as fast as torch's
    # kernels and without the symbols that take a third of the build's time.
    *(["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-DNDEBUG", "-g0"]),
    # A sanitizer's report names lines and whole stacks.
    *([*SANITIZER_FLAGS, "-O1", "-g1", "-fno-omit-frame-pointer"] if SANITIZE else []),
    *([*COVERAGE_FLAGS, "-O0"] if COVERAGE_FLAGS else []),
]


# at::parallel_for is a template over `#pragma omp`: without this it runs serially. Compile time
# only: not linking it lets GOMP_* resolve to the one OpenMP runtime that torch has loaded. What clang
# makes of it needs a runtime of its own, which would not know of torch.set_num_threads.
OPENMP_FLAGS = [] if is_clang() else ["-fopenmp"]


def pybind11_of(torch: Any) -> list[str]:
    """The folder with pybind11's headers: the package's, or those that torch bundles.

    torch._torch must have the bundled ones where there are some: of another internals version, torch's
    exception translators would not be shared with it.
    """
    if torch and (Path(torch.__file__).parent / "include" / "pybind11" / "pybind11.h").exists():
        return []  # among torch's own, which it names itself
    try:
        import pybind11
    except ImportError as error:
        raise SystemExit(
            f"torchgil is built with pybind11, which is not here ({error}): pip install pybind11"
        ) from error
    return [pybind11.get_include()]


def pybind11_for_gil() -> list[str]:
    """As above, for the half that knows no torch: the package's, or else those that torch bundles."""
    try:
        return pybind11_of(None)
    except SystemExit:
        if not TORCH:
            raise
        bundled = Path(TORCH.__file__).parent / "include"
        return [str(bundled)]


def extensions() -> list[Extension]:
    own = [str(ROOT / "csrc"), str(ROOT / "torchgil" / "include")]
    gil = Extension(
        "torchgil._gil",
        [*together(GIL), ALONE],
        include_dirs=[str(ROOT / "csrc" / "gil"), *own, *pybind11_for_gil()],
        extra_compile_args=COMPILE_FLAGS,
        extra_link_args=[*SANITIZER_FLAGS, *COVERAGE_FLAGS],
        language="c++",
    )
    if not TORCH:
        return [gil]
    from torch.utils.cpp_extension import CppExtension

    torch = CppExtension(
        "torchgil._torch",
        together(TORCH_HALF),
        include_dirs=[str(ROOT / "csrc" / "torch"), *own, *pybind11_of(TORCH)],
        extra_compile_args=[*COMPILE_FLAGS, *OPENMP_FLAGS],
        extra_link_args=[*SANITIZER_FLAGS, *COVERAGE_FLAGS],
    )
    return [gil, torch]


def builder() -> Any:
    """torch's own where there is torch: it names torch's headers and compiles several files at once."""
    if not TORCH:
        return build_ext
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension


class BuildAndRecord(builder()):  # type: ignore[misc]
    """Also writes down what the extensions were compiled for."""

    def run(self) -> None:
        super().run()
        built = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        for path in built:
            if TORCH and (message := VERSIONS["compiler_objection"](path)):
                raise SystemExit(message)
        package = built[0].parent
        package.mkdir(parents=True, exist_ok=True)
        version = f'"{TORCH_VERSION}"' if TORCH_VERSION else None
        (package / "_built_for.py").write_text(
            '"""Written by setup.py: what torchgil\'s extensions were compiled for."""\n\n'
            f"TORCH_VERSION = {version}\n"
            f'PYTHON_VERSION = "{sys.version_info.major}.{sys.version_info.minor}"\n'
        )


def options() -> dict[str, dict[str, str]]:
    """Of setuptools' commands."""
    found = {}
    if os.environ.get("TORCH_IN_VERSION"):
        found["egg_info"] = {"tag_build": LOCAL_VERSION}
    if not TORCH:  # or the wheel would take along a torchgil._torch of an earlier build
        found["build"] = {"build_base": "build/without_torch"}
    return found


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildAndRecord},
    install_requires=[f"torch=={TORCH_VERSION}"] if TORCH else [],
    options=options(),
)
