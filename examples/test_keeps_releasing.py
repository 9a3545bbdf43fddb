"""Tests that fail the day a call stops releasing the GIL: `pytest examples/test_keeps_releasing.py`.

The plugin comes with torchgil. What is marked is judged by an exact trace of the test's call, not by a
stopwatch, so a slow machine does not make it fail.
"""

import pytest
import torch

X = torch.randn(2048, 2048)


@pytest.mark.releases_gil  # at least 90 % of the call's time free of the GIL
def test_sorting_releases() -> None:
    torch.sort(X)


@pytest.mark.max_gil_hold(0.05)  # seconds, any thread, in one go
def test_a_training_step_holds_for_moments_only() -> None:
    weight = torch.randn(2048, 64, requires_grad=True)
    (X @ weight).relu().sum().backward()


@pytest.mark.xfail(reason="tolist makes Python objects and holds the GIL throughout", strict=True)
@pytest.mark.releases_gil
def test_what_a_failure_looks_like() -> None:
    X.tolist()


def test_a_part_of_a_test(gil_audit) -> None:  # type: ignore[no-untyped-def]
    audit = gil_audit(torch.linalg.svdvals, X[:400, :400])
    assert audit.verdict == "releases", audit
