"""Random graphs, sizes and dtypes against the exported module, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import torchgil
from tests.forward.comparing import assert_same, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8,
torch.bool,
          torch.complex64]  # fmt: skip

# No shrinking: an example takes an export, and a failure would be shrunk for minutes. It is shown as found.
BOUNDED = settings(deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))

# each takes the values so far and two numbers that pick among them
STEPS: list[Callable[[list[Tensor], int, int], Tensor]] = [
    lambda v, i, j: v[i] + v[j],
    lambda v, i, j: v[i] * 2 - v[j],
    lambda v, i, j: torch.where(v[i] != v[j], v[i], v[j]),
    lambda v, i, j: v[i].mT.contiguous().mT,
    lambda v, i, j: torch.cat([v[i], v[j]], 0)[::2],
    lambda v, i, j: torch.stack([v[i], v[j]]).sum(0).to(v[i].dtype),
    lambda v, i, j: v[i].clone().mul_(3),
    lambda v, i, j: v[i].flip(0).roll(1, 1),
    lambda v, i, j: v[i].unsqueeze(0).expand(2, -1, -1)[1],
    lambda v, i, j: v[i].split(2, 1)[0].repeat(1, 2),
    lambda v, i, j: v[i].index_select(0, torch.arange(v[j].shape[0] - 1, -1, -1)),
    lambda v, i, j: v[i] * v[j].shape[0] + v[i].shape[1] // 2,
    lambda v, i, j: v[i].reshape(-1)[: v[i].numel()].view(v[i].shape),
    lambda v, i, j: v[i].cumsum(0).to(v[j].dtype),
]


class Steps(nn.Module):
    """A graph drawn by hypothesis; all values keep the shape (n, 4)."""

    def __init__(self, steps: tuple[tuple[int, int, int], ...]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        values = [x, y]
        for kind, i, j in self.steps:
            values.append(STEPS[kind](values, i % len(values), j % len(values)))
        return values[2:]


def tensor(dtype: torch.dtype, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 9, (n, 4), generator=generator) - (0 if dtype is torch.uint8 else 4)
    return values.to(dtype) / 3 if dtype.is_floating_point or dtype.is_complex else values.to(dtype)


steps = st.lists(
    st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8
).map(tuple)


@settings(BOUNDED, max_examples=25)
@given(
    drawn=steps,
    dtype=st.sampled_from([torch.float32, torch.int64, torch.complex64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_a_random_graph_gives_the_exported_modules_bits(drawn: Any, dtype: torch.dtype, seed: int) -> None:
    x, y = tensor(dtype, 6, seed), tensor(dtype, 6, seed + 1)
    program = torch.export.export(Steps(drawn), (x, y))
    assert_same(torchgil.nogil(program)(x, y), reference(program)(x, y))


class Mixed(nn.Module):
    """Symbolic sizes in views, ranges, slices and numbers."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        n, m = x.shape[0], y.shape[0]
        joined = torch.cat([x, y, x])
        return {
            "joined": joined,
            "flat": joined.reshape(-1)[: n * 4],
            "table": torch.arange(n)[:, None] + torch.arange(m)[None, :],
            "tail": joined[max(n, m) - min(n, m) :],
            "masked": torch.where(joined == joined, joined, joined).sum(0),
            "sizes": (2 * n + m, n / (m + 1), n % 3, -n // 2, n > m),
        }


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def exported(request: pytest.FixtureRequest) -> tuple[torch.dtype, Any, Any]:
    """One export for a dtype, and not one for each example: where it fails, it fails once."""
    dtype = request.param
    program = torch.export.export(
        Mixed(),
        (tensor(dtype, 5, 0), tensor(dtype, 3, 1)),
        dynamic_shapes={"x": {0: Dim("n", min=2, max=40)}, "y": {0: Dim("m", min=2, max=40)}},
    )
    return dtype, torchgil.nogil(program), reference(program)


@settings(BOUNDED, max_examples=30)
@given(n=st.integers(2, 40), m=st.integers(2, 40), seed=st.integers(0, 99), wrong=st.sampled_from(DTYPES))
def test_any_sizes_give_the_exported_modules_bits_and_any_other_dtype_an_error(
    exported: tuple[torch.dtype, Any, Any], n: int, m: int, seed: int, wrong: torch.dtype
) -> None:
    dtype, forward, want = exported
    x, y = tensor(dtype, n, seed), tensor(dtype, m, seed + 1)
    assert_same(forward(x, y), want(x, y))
    if wrong != dtype:
        with pytest.raises(ValueError, match=r"argument 'y' .*its dtype differs"):
            forward(x, tensor(wrong, m, seed))
    with pytest.raises(ValueError, match=r"argument 'x' .*x\.shape\[0\] must be at least 2 and at most 40"):
        forward(tensor(dtype, n + 40, seed), y)
