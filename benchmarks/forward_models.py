"""The models of bench_forward.py, from torch alone; each with inputs that a seed varies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Four layers of 128."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[Block(128, 4, causal=False) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.short(x), inplace=True)


class ConvNet(nn.Module):
    """ResNet-like: a stem, four residual blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(
            *[Residual(a, b, s) for a, b, s in ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))]
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Pointwise(nn.Module):
    """A small MLP with long pointwise chains between its products."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(256, 256) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            for _ in range(6):
                y = torch.tanh(y) * 1.01 + torch.sigmoid(y) - 0.5 * y
            x = x + y
        return x


class Decoder(nn.Module):
    """GPT-style, with tied embeddings; its sequence length changes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(512, 128), nn.Embedding(256, 128)
        self.layers = nn.Sequential(*[Block(128, 4, causal=True) for _ in range(3)])
        self.norm = nn.LayerNorm(128)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * math.sqrt(128) + self.position(torch.arange(tokens.shape[1]))
        return self.norm(self.layers(x)) @ self.embed.weight.mT


@dataclass(frozen=True)
class Model:
    """How to make a model, one of its inputs, and which sizes change."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    dynamic_shapes: Any = None


MODELS = {
    "transformer": Model(Transformer, lambda seed: (torch.randn(2, 32, 128),)),
    "cnn": Model(ConvNet, lambda seed: (torch.randn(1, 3, 64, 64),)),
    "pointwise": Model(Pointwise, lambda seed: (torch.randn(64, 256),)),
    "decoder": Model(
        Decoder,
        lambda seed: (torch.randint(0, 512, (1, 24 + 4 * (seed % 8))),),
        {"tokens": {1: Dim("length", min=4, max=256)}},
    ),
}
