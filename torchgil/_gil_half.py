"""Loads torchgil._gil, the extension that knows the GIL and needs no torch."""

from __future__ import annotations

import sys

__all__ = ["REBUILD", "C", "built_for"]

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def built_for() -> str | None:
    """The torch that torchgil._torch was built for; None where it was not built.

    Raises:
        ImportError: Nothing is built, or it was for another Python.
    """
    try:
        from torchgil import _built_for
    except ImportError:
        raise ImportError(
            "torchgil's C++ extensions are not built: this looks like a source tree. "
            f"Build them, in its folder, with: {REBUILD}"
        ) from None
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != _built_for.PYTHON_VERSION:
        raise ImportError(
            f"torchgil was built for Python {_built_for.PYTHON_VERSION} but this is Python {running}; "
            f"rebuild it, in its source folder: {REBUILD}"
        )
    version: str | None = _built_for.TORCH_VERSION
    return version


built_for()
try:
    from torchgil import _gil as C
except ImportError as error:
    raise ImportError(
        f"torchgil's C++ extension could not be loaded ({error}); rebuild it, in its source folder: {REBUILD}"
    ) from error
