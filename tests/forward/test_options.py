"""An argument that is kept for later is checked when it is given, and the error names it."""

# ruff: noqa: E501  # one case a row: a table reads better than its rows broken up
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchgil

X = torch.ones(2, 4)
NOGIL: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("no tuple", {"args": X}, TypeError, "args must be a tuple of the example arguments, got Tensor"),
    ("a list", {"args": [X]}, TypeError, "args must be a tuple of the example arguments, got list"),
    ("no dict", {"kwargs": [X]}, TypeError, "kwargs must be a dict of the example arguments, got list"),
    ("no backend", {"backend": "gpu"}, ValueError, "backend must be 'graph' or 'inductor', got 'gpu'"),
    ("a backend that is none", {"backend": None}, ValueError, "backend must be 'graph' or 'inductor', got None"),
    ("a list for it", {"backend": ["graph"]}, ValueError, "backend must be 'graph' or 'inductor', got"),
    ("a float", {"runners": 2.0, "backend": "inductor"}, TypeError, r"runners must be an int from 1 to 1024, got 2\.0"),
    ("a bool", {"runners": True, "backend": "inductor"}, TypeError, "runners must be an int from 1 to 1024, got True"),
    ("text", {"runners": "2", "backend": "inductor"}, TypeError, "runners must be an int from 1 to 1024, got '2'"),
    ("no runner", {"runners": 0, "backend": "inductor"}, ValueError, "runners must be an int from 1 to 1024, got 0"),
    ("too many", {"runners": 10**30, "backend": "inductor"}, ValueError, "runners must be an int from 1 to 1024, got 1000"),
    ("for the graph", {"runners": 2}, ValueError, "runners and cache_dir are for backend='inductor'"),
    ("shapes", {"dynamic_shapes": "batch"}, TypeError, "dynamic_shapes must be a dict, tuple or list .* got 'batch'"),
    ("a Dim", {"dynamic_shapes": torch.export.Dim("b")}, TypeError, "dynamic_shapes must be a dict, tuple or list"),
    ("a number", {"cache_dir": 3, "backend": "inductor"}, TypeError, "cache_dir must be a path, got 3"),
    ("bytes", {"cache_dir": b"/tmp", "backend": "inductor"}, TypeError, "cache_dir must be a path, got b'/tmp'"),
    ("a file", {"cache_dir": __file__, "backend": "inductor"}, NotADirectoryError, "cache_dir must be a folder, and"),
    ("priority", {"gil_priority": "no"}, TypeError, "gil_priority must be True or False, got 'no'"),
    ("frozen", {"freeze": "no", "backend": "inductor"}, TypeError, "freeze must be True or False, got 'no'"),
    ("frozen graph", {"freeze": True}, ValueError, "freeze is for backend='inductor'; the graph backend reads"),
    ("none", {"gil_priority": None}, TypeError, "gil_priority must be True or False, got None"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "match"), [pytest.param(*w[1:], id=w[0]) for w in NOGIL])
def test_an_argument_of_nogil_is_named(given: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"^nogil: {match}"):
        torchgil.nogil(nn.Linear(4, 2).eval(), **{"args": (X,), **given})


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"path": 3}, TypeError, "path must be a path, got 3"),
        ({"path": None}, TypeError, "path must be a path, got None"),
        ({"path": b"x.pt2"}, TypeError, "path must be a path, got b'x.pt2'"),
        ({"runners": 2.0}, TypeError, r"runners must be an int from 1 to 1024, got 2\.0"),
        ({"runners": False}, TypeError, "runners must be an int from 1 to 1024, got False"),
        ({"runners": -1}, ValueError, "runners must be an int from 1 to 1024, got -1"),
        ({"runners": 2**64}, ValueError, "runners must be an int from 1 to 1024, got 18446744073709551616"),
        ({"gil_priority": 2}, TypeError, "gil_priority must be True or False, got 2"),
    ],
)
def test_an_argument_of_load_package_is_named(
    given: dict[str, Any], error: type[Exception], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"^load_package: {match}"):
        torchgil.load_package(**{"path": tmp_path / "model.pt2", **given})


def test_a_model_that_is_none_is_named() -> None:
    for model in (nn.Linear, lambda x: x, None):
        with pytest.raises(
            TypeError, match=r"^nogil: model must be an nn\.Module or an ExportedProgram, got"
        ):
            torchgil.nogil(model, (X,))  # type: ignore[arg-type]
