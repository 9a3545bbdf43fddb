"""One compiled package, for the tests of its calls and those of its file."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchgil


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, more: dict[str, Tensor], k: int = 3, *, flag: bool = True) -> dict[str, Any]:
        y = self.linear(x).relu() + more["bias"] * k
        return {"y": y, "rows": x.shape[0], "ratio": x.shape[0] / 2, "three": 3, "none": None}


def inputs(rows: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 8, generator=generator), {"bias": torch.randn(8, generator=generator)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def forward(model: nn.Module, request: pytest.FixtureRequest) -> Any:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler to compile the package with")
    assert request.config.cache is not None
    return torchgil.nogil(
        model,
        (*inputs(), 3),
        {"flag": True},
        dynamic_shapes={"x": {0: Dim("rows", max=64)}, "more": {"bias": {}}, "k": None, "flag": None},
        backend="inductor",
        runners=2,
        cache_dir=request.config.cache.mkdir("packages"),
    )


@pytest.fixture
def rewritten(forward: Any, tmp_path: Path) -> Callable[..., Path]:
    """The package with other metadata or files, as another machine or program would have written it."""

    def rewrite(drop: str = "", files: Mapping[str, bytes] | None = None, **changes: str) -> Path:
        target = tmp_path / "other.pt2"
        more = dict(files or {})
        with zipfile.ZipFile(forward.path) as old, zipfile.ZipFile(target, "w") as new:
            for item in old.infolist():
                data = old.read(item)
                if item.filename.endswith("_metadata.json"):
                    kept = {key: value for key, value in json.loads(data).items() if key != drop}
                    data = json.dumps({**kept, **changes}).encode()
                new.writestr(item.filename, more.pop(item.filename, data))
            for name, data in more.items():
                new.writestr(name, data)
        return target

    return rewrite


@pytest.fixture
def library(forward: Any) -> str:
    """The name of the package's native code in its archive."""
    with zipfile.ZipFile(forward.path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
    return name
