"""Where the C++ headers are that other extensions include."""

from __future__ import annotations

from pathlib import Path

__all__ = ["get_include"]


def get_include() -> str:
    """The folder of ``torchgil/gil.h`` and ``torchgil/policies.h``, for a compiler's -I.

    The headers are all there is: an extension that includes them does not need torchgil
    when it runs. gil.h needs pybind11 alone, policies.h torch as well; both are C++17,
    unless torch's own headers want more.

    Returns:
        Path of the folder, as setuptools and torch.utils.cpp_extension take it.

    >>> import os, torchgil
    >>> sorted(os.listdir(os.path.join(torchgil.get_include(), "torchgil")))
    ['arguments.h', 'gil.h', 'policies.h']
    """
    return str(Path(__file__).parent / "include")
