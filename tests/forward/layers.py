"""Layers and small networks as torch.nn has them: none was written for torchgil."""

# ruff: noqa: E501  # one case a row: a table reads better than its rows broken up
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tests.forward.cases import Inputs, Of, case, given

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
