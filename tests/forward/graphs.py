"""Shapes that graphs take: many results, lists, writes, modes, sizes in numbers, nested arguments."""

# one case a row: a table reads better than its rows broken up
from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim

from tests.forward.cases import Inputs, Of, case, given

case(
    "einsum",
    lambda: Of(lambda m, a, b: (torch.einsum("bij,bjk->bik", a, b), torch.einsum("bij->bji", a))),
    (2, 3, 4),
    (2, 4, 5),
)
case(
    "sorting",
    lambda: Of(
        lambda m, x: (
            torch.sort(x, stable=True),
            torch.topk(x, 2),
            x.argsort(-1),
            torch.unique(x.round()),
            x.median(dim=-1),
        )
    ),
    (3, 7),
)
case(
    "split, chunk, stack, cat",
    lambda: Of(
        lambda m, x: (
            torch.cat(list(reversed(x.split(2, -1))), -1),
            torch.stack(x.chunk(3, 0)),
            x.unbind(1)[0],
            torch.cat(x.tensor_split(3)),
        )
    ),
    (6, 8),
)
case(
    "complex numbers",
    lambda: Of(
        lambda m, x: (
            torch.fft.rfft(x),
            torch.view_as_real(torch.fft.fft(x) * (1 + 2j)),
            torch.polar(x.abs(), x).conj().angle(),
        )
    ),
    (2, 8),
)
case(
    "stft",
    lambda: Of(lambda m, x: torch.stft(x, 16, window=torch.hann_window(16), return_complex=True).abs()),
    (2, 64),
)
case(
    "linear algebra",
    lambda: Of(
        lambda m, x: (
            torch.linalg.qr(x),
            torch.linalg.svdvals(x),
            torch.linalg.solve(x @ x.mT + 9 * torch.eye(4), x),
            torch.linalg.vector_norm(x),
        )
    ),
    (4, 4),
)
case("writes to its own values", lambda: Of(lambda m, x: _own_writes(x)), (4, 6))
case(
    "types and casts",
    lambda: Of(
        lambda m, x: (
            x.to(torch.bfloat16) @ x.mT.bfloat16(),
            x.half().float(),
            (x > 0).sum(),
            x.to(torch.int32) // 3,
            x.double().clamp_(-1, 1),
            x.long() % 3,
        )
    ),
    (3, 5),
)
case(
    "aliases of inputs and weights",
    lambda: Of(lambda m, x: (x, m.l.weight, x.view(-1), m.l.weight.mT, x, m.l(x)), l=nn.Linear(4, 4)),
    (2, 4),
)
case(
    "literals in the results",
    lambda: Of(lambda m, x: {"x": x + 1, "n": 3, "name": "abc", "none": None, "flag": True, "half": 0.5}),
    (2,),
)
case("no grad, set grad and autocast", lambda: Of(lambda m, x: _modes(m, x), l=nn.Linear(6, 6)), (3, 6))
case(
    "running sums",
    lambda: Of(
        lambda m, x: (
            x.cumsum(0),
            x.cumprod(1),
            x.logcumsumexp(0),
            torch.searchsorted(x.sort().values, x),
            torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
        )
    ),
    (3, 5),
)
case(
    "scatter and gather",
    lambda: Of(
        lambda m, x: (
            x.scatter(1, x.argsort(1), 0.5),
            x.gather(1, x.argsort(1)),
            torch.zeros(3, 5).index_add(0, torch.tensor([0, 2, 0]), x),
            x.scatter_reduce(0, torch.zeros(3, 5, dtype=torch.long), x, "amax"),
        )
    ),
    (3, 5),
)
case(
    "advanced indexing",
    lambda: Of(
        lambda m, x: (
            x[torch.tensor([2, 0])],
            x[:, [1, 3]],
            x[..., None, ::2],
            x[x.sum(-1).argsort()][:, -1],
            x[torch.tensor([0, 1]), torch.tensor([2, 3])],
            torch.where(x > 0, x, 0.0),
        )
    ),
    (3, 5),
)
case(
    "sizes in numbers",
    lambda: Of(lambda m, x: _sizes(x)),
    lambda seed: (4 + seed % 5, 6 + seed % 3),
    dynamic_shapes=(({0: Dim.AUTO, 1: Dim.AUTO},),),
)
case(
    "derived dimensions",
    lambda: Of(lambda m, x, y: (y[1:] + x, x.view(2, -1))),
    lambda seed: (4 + 2 * (seed % 3), 3),
    lambda seed: (5 + 2 * (seed % 3), 3),
    dynamic_shapes=(({0: 2 * Dim("half", min=2, max=50)}, {0: 2 * Dim("half", min=2, max=50) + 1}),),
)
case("values in sizes", lambda: Of(lambda m, x: (x.nonzero(), x[x > 0], (x > 0).sum().item())), (3, 4))
case(
    "parallel branches",
    lambda: Of(
        lambda m, x: sum(getattr(m, f"b{i}")(x) for i in range(4)),
        **{f"b{i}": nn.Sequential(nn.Linear(6, 6), nn.Sigmoid()) for i in range(4)},
    ),
    (2, 6),
)
case("a buffer that does not persist", lambda: _with_buffer(), (2, 4))
case("int8 dynamic quantisation", lambda: Of(lambda m, x: _int8(m, x), l=nn.Linear(16, 8)), (4, 16))
case("weight norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (2, 5))
case(
    "losses",
    lambda: Of(
        lambda m, x, y: (
            F.mse_loss(x, y),
            F.cross_entropy(x, y.softmax(-1)),
            F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean"),
            F.huber_loss(x, y),
        )
    ),
    (3, 5),
    (3, 5),
)


def _own_writes(x: Tensor) -> tuple[Tensor, ...]:
    y = x.clone()
    y[0] = 1.0
    y[:, 1].mul_(2)
    y.add_(x).clamp_(min=0)
    z = torch.zeros_like(x)
    z.index_put_((torch.tensor([0, 1]),), x[:2])
    z.masked_fill_(x > 1, 3.0)
    return y, z, x.contiguous().view(-1) + 1


def _modes(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        a = m.l(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        b = m.l(x) @ x.mT
        with torch.autocast("cpu", enabled=False):
            c = m.l(x)
    with torch.set_grad_enabled(False):
        d = a + c
    return a, b, c, d, m.l(a)


def _sizes(x: Tensor) -> dict[str, Any]:
    n, k = x.shape
    return {
        "grid": torch.zeros(n * k + 1, max(n, k) - min(n, 2)),
        "steps": torch.arange(n // 2 + k % 4 + 1),
        "scaled": x * (n**0.5) / (k + 1.5) - n,
        "ratio": n / k,
        "larger": n > k,
        "total": x.numel(),
        "shape": x.shape,
        "flat": x.reshape(-1)[: n * k - 1],
        "padded": F.pad(x, (0, k - 1)),
        "sum": sum(x.shape),
        "neg": -n,
        "full": torch.full((2,), n),
    }


def _with_buffer() -> nn.Module:
    model = Of(lambda m, x: x * m.scale + m.shift, a=nn.Linear(1, 1))
    model.register_buffer("scale", torch.arange(4.0), persistent=False)
    model.shift = torch.ones(4)  # no buffer: export lifts it as a constant
    return model


def _int8(m: Any, x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    quantised = (x / scale).round().to(torch.int8)
    weight_scale = m.l.weight.abs().amax() / 127
    weight = (m.l.weight / weight_scale).round().to(torch.int8)
    return torch._int_mm(quantised, weight.mT).float() * scale * weight_scale + m.l.bias


# -- structures ------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Batch:
    """A dataclass that pytree knows."""

    tokens: Tensor
    mask: Tensor


pytree.register_dataclass(Batch)


@given(
    "nested inputs",
    lambda: Of(
        lambda m, d, p, *rest, b, scale=2.0, flag=True, name="x", none=None: OrderedDict(
            sum=d["a"] + d["b"][0] * scale,
            pair=Pair(p.left - 1, p.right),
            batch=Batch(b.tokens + 1, b.mask),
            rest=list(rest),
            first=rest[0] * 2 if flag else rest[1],
        )
    ),
)
def _(g: torch.Generator, seed: int) -> Inputs:
    def r() -> Tensor:
        return torch.randn(2, 3, generator=g)

    a, b = r(), [r()]
    return ({"a": a, "b": b}, Pair(r(), r()), r(), r()), {
        "b": Batch(r(), r()),
        "scale": 2.0,
        "flag": True,
        "name": "x",
        "none": None,
    }


@given(
    "ints and dynamic ints",
    lambda: Of(lambda m, x, n, k: (x * n + k, torch.zeros(n))),
    (({}, Dim.DYNAMIC, None),),
)
def _(g: torch.Generator, seed: int) -> Inputs:
    return (torch.randn(3, generator=g), 5 + seed % 4, 7), {}
