"""A small language model that generates: three layers as Llama has them, some 360 tiny ops a token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, WORDS, KEPT = 64, 4, 3, 256, 32
HEAD = WIDTH // HEADS


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """The rotary embedding."""
    left, right = x.chunk(2, -1)
    return x * angle.cos() + torch.cat((-right, left), -1) * angle.sin()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.before, self.between = Norm(), Norm()

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, angle: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        normal = self.before(x)
        query, key, value = (
            project(normal).view(1, 1, HEADS, HEAD).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        keys = torch.cat((keys, turned(key, angle)), 2)[:, :, -KEPT:]
        values = torch.cat((values, value), 2)[:, :, -KEPT:]
        scores = torch.softmax(turned(query, angle) @ keys.transpose(-1, -2) / HEAD**0.5, -1)
        x = x + self.out((scores @ values).transpose(1, 2).reshape(1, 1, WIDTH))
        normal = self.between(x)
        return x + self.down(functional.silu(self.gate(normal)) * self.up(normal)), keys, values


def tokens() -> Iterator[Tensor]:
    """One step of the model for each token, for ever."""
    torch.manual_seed(0)
    embedding, head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
    layers = [Layer() for _ in range(LAYERS)]
    kept = [(torch.zeros(1, HEADS, KEPT, HEAD),) * 2 for _ in layers]
    token, angle = torch.tensor([[1]]), torch.linspace(0, 1, HEAD)
    while True:
        with torch.inference_mode():
            x = embedding(token)
            for i, layer in enumerate(layers):
                x, *now = layer(x, *kept[i], angle)
                kept[i] = (now[0], now[1])
            token = head(x).argmax(-1)
        yield token
