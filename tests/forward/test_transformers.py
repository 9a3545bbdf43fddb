"""Decoders of transformers as its own exporter writes them down: the same bits and tokens from sessions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import torchgil
from tests.conftest import in_threads
from tests.forward.comparing import assert_same

pytestmark = [pytest.mark.peer, pytest.mark.slow]

KEPT = 32  # places in the cache
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
OLDER = {"num_key_value_heads": 4}
# What each family's configuration has besides.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": None},
    "phi": OLDER,
    "gpt2": {**OLDER, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {**OLDER, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": OLDER,
}


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="pip install transformers")


@functools.cache
def language_model(family: str) -> Any:
    """A model of the family with random weights."""
    auto = transformers()
    config = auto.AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    torch.manual_seed(0)
    model = auto.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.update(cache_implementation="static", use_cache=True, eos_token_id=None)
    return model


class WithPositions(torch.nn.Module):
    """The exporter's step with positions given: OPT takes them from a number that export does not know."""

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.step = step

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        cache = self.step.static_cache
        for layer in cache.layers:
            layer.cumulative_length.copy_(cache_position[0])
        found: Tensor = self.step.model(
            input_ids=input_ids, position_ids=cache_position[None], cache=cache, use_cache=True
        ).logits
        return found


@functools.cache
def exported(family: str) -> ExportedProgram:
    """Its step over a cache of its own; any number of tokens."""
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    module = TorchExportableModuleForDecoderOnlyLM(language_model(family), batch_size=1, max_cache_len=KEPT)
    if family == "opt":
        module.model = WithPositions(module.model)
    length = Dim("length", min=1, max=KEPT - 1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return module.export(
            input_ids=torch.tensor([[1, 2, 3]]),
            cache_position=torch.arange(3),
            dynamic_shapes={"input_ids": {1: length}, "cache_position": {0: length}},
            strict=False,
        )


def prompt(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 97, (1, 3 + seed % 7), generator=generator)


def logits(step: Callable[..., Tensor], tokens: Tensor, count: int) -> Iterator[Tensor]:
    """What a step gives for a prompt, and then for each token that follows, greedily."""
    start = 0
    for _ in range(count):
        places = torch.arange(start, start + tokens.shape[1])
        start += tokens.shape[1]
        found = step(input_ids=tokens, cache_position=places)
        yield found
        tokens = found[:, -1:].argmax(-1)


def greedy(step: Callable[..., Tensor], tokens: Tensor, count: int) -> list[int]:
    return [int(found[0, -1].argmax()) for found in logits(step, tokens, count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_gives_the_exported_modules_bits_and_generates_what_the_model_does(family: str) -> None:
    model, program = language_model(family), exported(family)
    fast = torchgil.nogil(program)
    module = program.module()
    for seed in (1, 2):
        with torch.inference_mode():
            want = list(logits(module, prompt(seed), 8))
        assert_same(list(logits(fast.session(), prompt(seed), 8)), want)
        tokens = model.generate(
            prompt(seed), max_new_tokens=16, do_sample=False, cache_implementation=None, pad_token_id=0
        )
        assert greedy(fast.session(), prompt(seed), 16) == tokens[0, prompt(seed).shape[1] :].tolist()


def test_sessions_generate_at_once_in_threads_and_branch_from_a_prompt() -> None:
    model, fast = language_model("llama"), torchgil.nogil(exported("llama"))
    want = [greedy(fast.session(), prompt(seed), 16) for seed in range(6)]
    assert in_threads(lambda seed: greedy(fast.session(), prompt(seed), 16), 6) == want
    trunk = fast.session()
    trunk(input_ids=prompt(3), cache_position=torch.arange(6))
    for token in (5, 6):
        alone = fast.session()
        alone(input_ids=prompt(3), cache_position=torch.arange(6))
        next_one = {"input_ids": torch.tensor([[token]]), "cache_position": torch.tensor([6])}
        assert_same(trunk.copy()(**next_one), alone(**next_one))
    assert not any(name in dict(model.named_parameters()) for name in fast.state_names)


def test_a_t5_decoder_generates_what_the_model_does() -> None:
    auto = transformers()
    from transformers.integrations.executorch import Seq2SeqLMExportableModule

    config = auto.T5Config(
        vocab_size=97,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        eos_token_id=None,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = auto.T5ForConditionalGeneration(config).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = Seq2SeqLMExportableModule(model, max_hidden_seq_length=KEPT, max_cache_length=KEPT).export()
    encoder, decoder = torchgil.nogil(parts.exported_encoder), torchgil.nogil(parts.exported_decoder)
    module = parts.exported_decoder.module()
    for seed in (1, 2):
        hidden, session = encoder(prompt(seed)), decoder.session()
        tokens = [0]
        for place in range(12):
            given = (torch.tensor([tokens[-1:]]), hidden, torch.tensor([place]))
            found = session(*given)
            with torch.inference_mode():
                assert_same(found, module(*given))
            tokens.append(int(found[0, -1].argmax()))
        want = model.generate(prompt(seed), max_new_tokens=12, do_sample=False)
        assert tokens == want[0].tolist()
