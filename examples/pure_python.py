"""A request that is mostly pure Python, where a process pool is right.

    torchgil compare examples/pure_python.py:factory --quick

Counting the pairs of letters of a text stands for a tokeniser or for feature code: some 20 ms in which the
thread has the GIL. Threads take turns at it; processes do not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LETTERS = 26
TEXT = b"the quick brown fox jumps over the lazy dog " * 5000


def pairs(text: list[int]) -> list[float]:
    """How often each letter follows each other; `text` is ASCII."""
    counts = [0.0] * (LETTERS * LETTERS)
    before = -1
    for code in text:
        now = code - ord("a")
        if not 0 <= now < LETTERS:
            now = -1
        elif before >= 0:
            counts[LETTERS * before + now] += 1
        before = now
    return counts


def factory() -> tuple[Callable[[Tensor], Tensor], tuple[Tensor]]:
    """The callable, for texts of shape [rows, letters], and one request."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(LETTERS * LETTERS, 8).eval()

    def answer(texts: Tensor) -> Tensor:
        result: Tensor = layer(torch.tensor([pairs(text) for text in texts.tolist()]))
        return result

    return answer, (torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).unsqueeze(0),)
