"""Arguments that are kept for later are checked as they are given: the error names the argument."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from torchgil._checks import whole

__all__ = ["check_cache_dir", "check_dynamic_shapes", "check_path", "check_runners"]


def check_runners(function: str, runners: Any) -> int:
    """How many models, as an int from 1 to 1024: each has buffers of its own, and more is a mistake.

    Raises:
        TypeError: It is no int.
        ValueError: It is too small or too large.
    """
    return whole(f"{function}: runners", runners, 1, 1024, wanted="an int from 1 to 1024")


def check_path(function: str, name: str, value: Any) -> None:
    """A path as text.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{function}: {name} must be a path, got {value!r}")


def check_cache_dir(value: Any) -> None:
    """A folder, or where one can be made.

    Raises:
        NotADirectoryError: Something else is there.
        TypeError: It is no path.
    """
    check_path("nogil", "cache_dir", value)
    if os.path.exists(value) and not os.path.isdir(value):
        raise NotADirectoryError(f"nogil: cache_dir must be a folder, and {os.fspath(value)!r} is a file")


def check_dynamic_shapes(value: Any) -> None:
    """What torch.export takes.

    Raises:
        TypeError: It is nothing of the kind.
    """
    kinds = (Mapping, tuple, list, torch.export.ShapesCollection, torch.export.AdditionalInputs)
    if value is not None and not isinstance(value, kinds):
        raise TypeError(
            f"nogil: dynamic_shapes must be a dict, tuple or list that follows the arguments, got {value!r}"
        )
