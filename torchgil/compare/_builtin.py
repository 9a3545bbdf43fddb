"""The model that `torchgil compare` takes where it is given none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["transformer"]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


def transformer() -> tuple[nn.Module, tuple[Tensor]]:
    """Eight layers of width 512, 25 million weights, 101 MB; a request is 50 tokens, 102 KB in and out.

    Example:
        >>> model, (tokens,) = transformer()
        >>> sum(p.numel() * p.element_size() for p in model.parameters()) // 10**6
        100
        >>> tuple(tokens.shape)
        (1, 50, 512)
    """
    torch.manual_seed(0)
    model = nn.Sequential(*[_Block(512, 8) for _ in range(8)]).eval()
    return model, (torch.randn(1, 50, 512),)
