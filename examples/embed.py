"""Sentence embeddings from several Python threads: eager, then the same model under one GIL release.

    python examples/embed.py                      # a small transformer made here
    python examples/embed.py --model path/to/dir  # a local Hugging Face encoder (needs transformers)

Prints how many sentences a second each gives with one thread and with several, and how long one takes while
another Python thread is busy.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import torchgil

SENTENCES = [
    "The lock is held while the list is read.",
    "A short one.",
    "Every operator gives the interpreter back, and then has to wait for it again.",
    "Threads share the weights and nothing else.",
]


class Encoder(nn.Module):
    """Token embeddings, four attention layers, the masked mean."""

    def __init__(self, vocabulary: int = 2048, width: int = 128) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.position(torch.arange(input_ids.shape[1]))
        x = self.layers(x, src_key_padding_mask=attention_mask == 0)
        return masked_mean(x, attention_mask)


class Pretrained(nn.Module):
    """A Hugging Face encoder and the masked mean."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return masked_mean(states, attention_mask)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(x.dtype)
    return nn.functional.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


def tokenise(sentence: str) -> tuple[Tensor, Tensor]:
    """One token a word: enough to have sizes that differ."""
    ids = torch.tensor([[sum(word.encode()) % 2048 for word in sentence.split()]])
    return ids, torch.ones_like(ids)


def load(folder: str | None) -> tuple[str, nn.Module, Callable[[str], tuple[Tensor, Tensor]]]:
    """The user's encoder if there is one here, else ours; and what makes its inputs."""
    if folder is None:
        torch.manual_seed(0)
        return "the built-in transformer", Encoder().eval(), tokenise
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise SystemExit("--model needs transformers: pip install transformers") from None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa")

    def prepare(sentence: str) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(sentence, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    return folder, Pretrained(model).eval(), prepare


def rate(
    forward: Callable[..., Tensor], batch: list[tuple[Tensor, Tensor]], threads: int, seconds: float
) -> float:
    """Sentences per second, `threads` of them at a time."""

    def work(_: int) -> int:
        end, done = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            forward(*batch[done % len(batch)])
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads))) / seconds


def beside_a_busy_thread(
    forward: Callable[..., Tensor], inputs: tuple[Tensor, Tensor], seconds: float
) -> float:
    """Milliseconds one sentence takes (median) while another Python thread computes."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sum(range(100))

    thread = threading.Thread(target=busy)
    thread.start()
    times, end = [], time.perf_counter() + seconds
    try:
        while len(times) < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            forward(*inputs)
            times.append(time.perf_counter() - started)
    finally:
        stop.set()
        thread.join()
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a Hugging Face encoder")
    parser.add_argument("--threads", type=int, default=torchgil.usable_cores())
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is measured")
    options = parser.parse_args()

    name, model, prepare = load(options.model)
    batch = [prepare(sentence) for sentence in SENTENCES]
    length = Dim("length", min=2, max=64)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    nogil = torchgil.nogil(model, batch[0], dynamic_shapes=shapes)
    print(f"{name}: {nogil}\n")

    def eager(*inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(*inputs)

    for inputs in batch:
        torch.testing.assert_close(nogil(*inputs), eager(*inputs))
    print(f"{'':8}{'1 thread':>16}{f'{options.threads} threads':>16}{'beside a busy thread':>26}")
    with torchgil.intra_op_threads(1):
        for label, forward in (("eager", eager), ("nogil", nogil)):
            one, several = (rate(forward, batch, n, options.seconds) for n in (1, options.threads))
            busy = beside_a_busy_thread(forward, batch[0], options.seconds)
            print(f"{label:8}{one:12.0f} /s{several:13.0f} /s{busy:23.1f} ms")


if __name__ == "__main__":
    main()
