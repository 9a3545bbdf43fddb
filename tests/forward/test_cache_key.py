"""What a compiled package is kept under: everything that makes its answers, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchgil.forward import _inductor as inductor
from torchgil.forward._inductor import _key
from torchgil.forward._inputs import plan_inputs
from torchgil.forward._machine import check_machine
from torchgil.forward._manifest import Manifest


def key(function: Callable[[Tensor], Any], x: Tensor | None = None, weight: float = 1.0) -> str:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), weight))

        def forward(self, x: Tensor) -> Any:
            return function(x * self.weight)

    program = torch.export.export(Model().eval(), (torch.ones(3) if x is None else x,))
    return _key(program, Manifest.of(program, plan_inputs(program)).dumps())


@pytest.mark.parametrize("other", [(9, 0), (8, 6)])
def test_another_gpu_has_another_key(monkeypatch: pytest.MonkeyPatch, other: tuple[int, int]) -> None:
    monkeypatch.setattr(inductor, "devices", lambda program: {torch.device("cuda", 0), torch.device("cpu")})
    keys = []
    for capability in ((8, 0), (8, 0), other):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        keys.append(key(without_grad(2)))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("made_for", "here", "runs"),
    [
        ("80", (8, 0), True),
        ("80", (8, 6), True),
        ("86", (8, 0), False),
        ("80", (9, 0), False),
        ("100", (12, 0), False),
    ],
)
def test_a_package_for_another_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, made_for: str, here: tuple[int, int], runs: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: here)
    metadata = {"AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": made_for}
    if runs:
        check_machine("model.pt2", metadata)
    else:
        with pytest.raises(
            RuntimeError, match=f"'model.pt2' was compiled for a cuda device of .* {made_for}, and"
        ):
            check_machine("model.pt2", metadata)


def without_grad(factor: float) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * factor
        return y + 1

    return function


def test_the_same_program_has_the_same_key() -> None:
    assert key(without_grad(2)) == key(without_grad(2))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: key(without_grad(3)), id="another region's body"),
        pytest.param(lambda: key(lambda x: without_grad(2)(x) + 1), id="another graph"),
        pytest.param(lambda: key(lambda x: {"y": without_grad(2)(x)}), id="another structure of results"),
        pytest.param(lambda: key(without_grad(2), weight=2.0), id="other weights"),
        pytest.param(lambda: key(without_grad(2), x=torch.ones(1, 3)), id="another input"),
    ],
)
def test_another_program_has_another_key(other: Callable[[], str]) -> None:
    assert key(without_grad(2)) != other()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(lambda: default_dtype(torch.float64), id="default dtype"),
        pytest.param(deterministic, id="deterministic"),
        pytest.param(lambda: matmul_precision("tf32"), id="precision of matmul"),
    ],
)
def test_what_is_compiled_under_another_setting_has_another_key(setting: Any) -> None:
    """Its code is another one: of ``torch.ones(3)`` the dtype is chosen as it is compiled."""
    program = torch.export.export(nn.Identity(), (torch.ones(3),))
    manifest = Manifest.of(program, plan_inputs(program)).dumps()
    before = _key(program, manifest)
    with setting():
        assert _key(program, manifest) != before
    assert _key(program, manifest) == before
