"""Models and graph shapes that the forward tests run: none was written for torchgil.

Each entry makes a model, its example inputs, and other inputs of the same structure from a seed.
"""

# ruff: noqa: E501  # one case a row: a table reads better than its rows broken up
from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model and what to call it with; `inputs(seed)` differs in values, and in sizes where they are dynamic."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    dynamic_shapes: Any = None


CASES: list[Case] = []


def case(name: str, make: Callable[[], nn.Module], *shapes: Any, dynamic_shapes: Any = None) -> None:
    """Registers a model whose inputs are random tensors; a shape may be a function of the seed."""

    def inputs(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        sized = [shape(seed) if callable(shape) else shape for shape in shapes]
        return tuple(torch.randn(shape, generator=generator) for shape in sized), {}

    CASES.append(Case(name, make, inputs, dynamic_shapes))


def given(name: str, make: Callable[[], nn.Module], dynamic_shapes: Any = None) -> Callable[[Any], Any]:
    """Registers a model whose inputs the decorated function makes from a generator and a seed."""

    def register(function: Callable[[torch.Generator, int], Inputs]) -> Any:
        def inputs(seed: int) -> Inputs:
            return function(torch.Generator().manual_seed(seed), seed)

        CASES.append(Case(name, make, inputs, dynamic_shapes))
        return function

    return register


class Of(nn.Module):
    """A function as a module, with submodules by name."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


# -- layers as torch.nn has them ------------------------------------------------------------

case("mlp", lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)), (3, 8))
case(
    "mlp in place",
    lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.SiLU(inplace=True)),
    (3, 8),
)
case(
    "mlp dynamic batch",
    lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)),
    lambda seed: (2 + seed % 5, 8),
    dynamic_shapes={"input": {0: Dim.DYNAMIC}},
)
case(
    "convolutions",
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ),
    (2, 3, 16, 16),
)  # fmt: skip
case(
    "transposed and 3d convolutions",
    lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.ConvTranspose3d(3, 2, 2)),
    (1, 2, 4, 5, 6),
)
case(
    "depthwise 1d",
    lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.InstanceNorm1d(4), nn.PReLU()),
    (2, 4, 9),
)
case("batch norm without statistics", lambda: nn.BatchNorm1d(4, track_running_stats=False), (5, 4))
case("lstm", lambda: nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True), (2, 4, 6))
case("gru", lambda: nn.GRU(6, 5, num_layers=2), (4, 2, 6))
case(
    "rnn cell loop",
    lambda: Of(lambda m, x: [h := m.cell(x[0]), m.cell(x[1], h)], cell=nn.GRUCell(6, 5)),
    (2, 3, 6),
)
case(
    "transformer encoder",
    lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False
    ),
    lambda seed: (2 + seed % 3, 5, 16),
    dynamic_shapes={"src": {0: Dim.DYNAMIC}},
)
case("transformer", lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True), (2, 5, 16), (2, 3, 16))
case(
    "bilinear and cosine",
    lambda: Of(lambda m, a, b: F.cosine_similarity(m.b(a, b), a, dim=-1), b=nn.Bilinear(5, 5, 5)),
    (3, 5),
    (3, 5),
)
case(
    "interpolation",
    lambda: Of(
        lambda m, x: (
            F.interpolate(x, scale_factor=1.7),
            F.interpolate(x, (5, 5), mode="bilinear", align_corners=True),
            F.interpolate(x, size=(9, 3), mode="bicubic", antialias=True),
        )
    ),
    (1, 2, 7, 8),
)
case(
    "grid sample",
    lambda: Of(
        lambda m, x, t: F.grid_sample(
            x, F.affine_grid(t, (2, 3, 6, 6), align_corners=False), align_corners=False
        )
    ),
    (2, 3, 5, 5),
    (2, 2, 3),
)
case("unfold and fold", lambda: Of(lambda m, x: F.fold(F.unfold(x, 3), (6, 6), 3)), (1, 2, 6, 6))
case(
    "pixel shuffle and pad",
    lambda: nn.Sequential(
        nn.ReflectionPad2d(1), nn.PixelShuffle(2), nn.ZeroPad2d(2), nn.Upsample(scale_factor=2)
    ),
    (1, 4, 4, 4),
)


@given(
    "attention with masks",
    lambda: Of(
        lambda m, q, mask: m.a(q, q, q, key_padding_mask=mask)[0],
        a=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
)
def _(g: torch.Generator, seed: int) -> Inputs:
    return (torch.randn(2, 5, 8, generator=g), torch.arange(5).expand(2, 5) >= 3 + seed % 2), {}


class Decoder(nn.Module):
    """GPT-style: tied embedding, causal attention, dynamic length."""

    def __init__(self, vocabulary: int = 31, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        x = self.embed(tokens) + self.position(torch.arange(length, device=tokens.device))
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        attended = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, -1))
        return self.head(x)


@given("decoder", Decoder, {"tokens": {0: Dim("batch", max=8), 1: Dim("length", min=3, max=64)}})
def _(g: torch.Generator, seed: int) -> Inputs:
    return (torch.randint(0, 31, (2 + seed % 3, 4 + seed % 7), generator=g),), {}


@given("sdpa causal", lambda: Of(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)))
def _(g: torch.Generator, seed: int) -> Inputs:
    return tuple(torch.randn(1, 2, 6, 8, generator=g) for _ in range(3)), {}


@given(
    "embedding bags",
    lambda: Of(
        lambda m, i, o, w: (m.mean(i, o), m.sum(i, o, w), m.pad(i)),
        mean=nn.EmbeddingBag(11, 4),
        sum=nn.EmbeddingBag(11, 4, mode="sum"),
        pad=nn.Embedding(11, 4, padding_idx=0),
    ),
)
def _(g: torch.Generator, seed: int) -> Inputs:
    return (
        torch.randint(0, 11, (7,), generator=g),
        torch.tensor([0, 2, 4 + seed % 3]),
        torch.randn(7, generator=g),
    ), {}


# -- graph shapes ----------------------------------------------------------------------------

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
