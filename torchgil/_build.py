"""Loads torchgil._C, after making sure that it fits the torch installed here.

An extension compiled for another torch fails with an undefined symbol, if it is
lucky. So what it was built for is written down beside it and compared first.
"""

from __future__ import annotations

import sys
import warnings

import torch

from torchgil._support import objection, untried

_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _check() -> None:
    if message := objection(torch.__version__):
        raise ImportError(message)
    try:
        from torchgil import _built_for
    except ImportError:
        raise ImportError(
            "torchgil's C++ extension is not built: this looks like a source tree. "
            f"Build it, in its folder, with: {_REBUILD}"
        ) from None
    installed = torch.__version__.split("+")[0]
    if installed != _built_for.TORCH_VERSION:
        raise ImportError(
            f"torchgil was built for torch {_built_for.TORCH_VERSION} but torch {installed} is installed; "
            f"rebuild it, in its source folder: {_REBUILD}"
        )
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != _built_for.PYTHON_VERSION:
        raise ImportError(
            f"torchgil was built for Python {_built_for.PYTHON_VERSION} but this is Python {running}; "
            f"rebuild it, in its source folder: {_REBUILD}"
        )
    if message := untried(torch.__version__):
        warnings.warn(message, RuntimeWarning, stacklevel=2)


_check()
try:
    from torchgil import _C as C
except ImportError as error:
    raise ImportError(
        f"torchgil's C++ extension could not be loaded ({error}); "
        f"rebuild it, in its source folder: {_REBUILD}"
    ) from error

__all__ = ["C"]
