"""Several users stream tokens from one language model and one event loop, each from a session of their own.

    python examples/generate.py
    python examples/generate.py --users 8 --tokens 64

A Llama with random weights (needs transformers: pip install 'torchgil[generate]'; nothing is downloaded),
written down by Hugging Face's own exporter with its key-value cache. The prompt goes in at once, then token
after token. The event loop stays free meanwhile: it counts how late it wakes. Each user's tokens are those of
model.generate().
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from torch import Tensor
from torch.export import Dim

import torchgil

LAYERS, WIDTH, WORDS = 6, 256, 1000


def language_model() -> Any:
    """A small Llama that knows nothing."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise SystemExit("this example needs transformers: pip install 'torchgil[generate]'") from None
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.generation_config.update(use_cache=True, eos_token_id=None, pad_token_id=0)
    return model


def without_gil(model: Any, places: int) -> Any:
    """The model with a cache of so many places, as a program that makes sessions."""
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    model.generation_config.cache_implementation = "static"  # what the exporter asks for
    module = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=places)
    model.generation_config.cache_implementation = None
    length = Dim("length", min=1, max=places - 1)
    program = module.export(
        input_ids=torch.tensor([[1, 2, 3]]),
        cache_position=torch.arange(3),
        dynamic_shapes={"input_ids": {1: length}, "cache_position": {0: length}},
        strict=False,
    )
    return torchgil.nogil(program)


async def stream(pool: torchgil.ThreadPool, session: Any, prompt: Tensor, count: int) -> AsyncIterator[int]:
    """Greedily, one token after the other; each step runs in a worker of the pool."""
    tokens, place = prompt, 0
    for _ in range(count):
        places = torch.arange(place, place + tokens.shape[1])
        place += tokens.shape[1]
        logits = await pool.run(session, input_ids=tokens, cache_position=places)
        tokens = logits[:, -1:].argmax(-1)
        yield int(tokens)


async def lateness(late: list[float]) -> None:
    """How late the event loop wakes, until it is cancelled."""
    while True:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - due)


async def serve(fast: Any, prompts: list[Tensor], count: int) -> tuple[list[list[int]], list[float]]:
    """All users at once: each one's tokens, and how late the event loop was."""

    async def user(prompt: Tensor) -> list[int]:
        with fast.session() as session:
            return [token async for token in stream(pool, session, prompt, count)]

    late: list[float] = []
    with torchgil.ThreadPool(intra_op_threads=1) as pool:
        watcher = asyncio.create_task(lateness(late))
        streams = await asyncio.gather(*map(user, prompts))
        watcher.cancel()
    return streams, late


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32, help="that each user gets (default 32)")
    options = parser.parse_args()
    model = language_model()
    prompts = [torch.randint(1, WORDS, (1, 4 + i)) for i in range(options.users)]
    fast = without_gil(model, places=prompts[-1].shape[1] + options.tokens)
    started = time.perf_counter()
    streams, late = asyncio.run(serve(fast, prompts, options.tokens))
    took = time.perf_counter() - started
    print(
        f"{options.users} users, {options.tokens} tokens each: {options.users * options.tokens / took:.0f} "
        f"tokens/s; the event loop was {1e3 * statistics.median(late):.2f} ms late (p50), "
        f"{1e3 * max(late):.1f} at most"
    )
    for i, (prompt, tokens) in enumerate(zip(prompts, streams, strict=True)):
        want = model.generate(prompt, max_new_tokens=options.tokens, do_sample=False)
        whose = "the" if tokens == want[0, prompt.shape[1] :].tolist() else "NOT the"
        print(f"user {i}: {' '.join(map(str, tokens[:8]))} ..., {whose} tokens of generate()")


if __name__ == "__main__":
    main()
