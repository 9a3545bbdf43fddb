"""Loads torchgil._torch, the extension for one torch, after making sure that it fits the one installed here.

An extension compiled for another torch fails with an undefined symbol, if it is lucky. So what it was built
for is written down beside it and compared first. What needs no torch does not come here.
"""

from __future__ import annotations

import warnings

from torchgil._gil_half import REBUILD, built_for
from torchgil._versions import objection, untried

__all__ = ["C", "misfit"]


def misfit() -> str | None:
    """Why what needs torch cannot be used here, and what mends that; None where it can."""
    wanted = built_for()
    try:
        import torch
    except Exception as error:  # a broken one raises OSError, or anything
        return (
            f"this part of torchgil needs torch, which cannot be imported here ({error}): install torch, "
            f"then, in torchgil's source folder: {REBUILD}"
        )
    version = str(getattr(torch, "__version__", None))
    try:
        message = objection(version)
    except ValueError as error:  # a stub for tests, or a folder of that name
        found = getattr(torch, "__file__", None) or [*getattr(torch, "__path__", [])]
        return (
            f"this part of torchgil needs torch, and what is imported by that name is none ({error}): {found}"
        )
    if message:
        return message
    if wanted is None:
        return (
            "this part of torchgil needs torch, and torchgil was built without it: build it again where "
            f"torch is installed, in its source folder: {REBUILD}"
        )
    installed = version.split("+")[0]
    if installed != wanted:
        return (
            f"torchgil was built for torch {wanted} but torch {installed} is installed; "
            f"rebuild it, in its source folder: {REBUILD}"
        )
    if message := untried(version):
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return None


if message := misfit():
    raise ImportError(message)
try:
    from torchgil import _torch as C
except ImportError as error:
    raise ImportError(
        f"torchgil's C++ extension for torch could not be loaded ({error}); "
        f"rebuild it, in its source folder: {REBUILD}"
    ) from error
