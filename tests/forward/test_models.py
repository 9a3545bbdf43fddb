"""Every model: bit for bit what the exported module gives, from one thread and from eight at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchgil
from tests.conftest import in_threads
from tests.forward.comparing import assert_close, assert_same, export, reference
from tests.forward.models import CASES, Case

PARAMETERS = [pytest.param(case, id=case.name) for case in CASES]


def test_there_are_enough_models() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", PARAMETERS)
def test_results_are_bit_for_bit_the_exported_modules(case: Case) -> None:
    model, program = export(case)
    forward = torchgil.nogil(program)
    want = reference(program)
    for seed in range(4):
        args, kwargs = case.inputs(seed)
        got = forward(*args, **kwargs)
        assert_same(got, want(*args, **kwargs))
        with torch.inference_mode():
            assert_close(got, model(*args, **kwargs))


@pytest.mark.parametrize("case", PARAMETERS)
def test_eight_threads_with_other_inputs_and_errors_in_between_change_no_bit(case: Case) -> None:
    _, program = export(case)
    forward = torchgil.nogil(program)
    want = reference(program)
    calls = [case.inputs(seed) for seed in range(8)]
    wanted = [want(*args, **kwargs) for args, kwargs in calls]

    def work(thread: int) -> list[Any]:
        args, kwargs = calls[thread]
        results = []
        for turn in range(6):
            if turn % 3 == thread % 3:
                with pytest.raises((TypeError, ValueError), match="nogil"):
                    forward(object(), *args[1:], **kwargs)
            results.append(forward(*args, **kwargs))
        return results

    for results, expected in zip(in_threads(work, 8), wanted, strict=True):
        for result in results:
            assert_same(result, expected)


def test_a_kernel_that_fails_in_one_thread_disturbs_no_other() -> None:
    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 4)
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return self.linear(self.table(index).relu())

    torch.manual_seed(0)
    model = Lookup().eval()
    good, bad = torch.tensor([1, 9, 3]), torch.tensor([1, 10, 3])
    forward = torchgil.nogil(model, (good,))
    with torch.inference_mode():
        want = model(good)

    def work(thread: int) -> None:
        for turn in range(50):
            if (thread + turn) % 4 == 0:
                with pytest.raises(
                    IndexError, match=r"index out of range(.|\n)*while nogil ran node 'embedding' \("
                ):
                    forward(bad)
            assert_same(forward(good), want)

    in_threads(work, 8)
