"""Every op under every policy against its reference: drawn shapes, strides, dtypes and special values."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import POLICIES

EXAMPLES = int(os.environ.get("TORCHGIL_STRESS_EXAMPLES", "25"))
drawing = settings(max_examples=EXAMPLES, deadline=None)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 65504.0, 3.4e38, -1.0]
policies = st.sampled_from(sorted(POLICIES))
sizes = st.integers(0, 5)


@st.composite
def tensors(draw, shape, dtypes=DTYPES):
    """Values that are special now and then, in memory that is strided, turned or not at its start."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype, layout = draw(st.sampled_from(dtypes)), draw(st.sampled_from(["plain", "step", "moved", "turned"]))
    stored = [2 * size if layout == "step" else size for size in shape]
    if layout == "turned":
        stored = stored[::-1]
    values = torch.randn(stored, generator=generator, dtype=torch.float64) * 4
    if dtype.is_floating_point and values.numel() and draw(st.booleans()):
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    if dtype is torch.uint8:
        values = values.abs()
    if layout == "moved":
        values = torch.cat([torch.zeros(3), values.reshape(-1)])
        return values.to(dtype)[3:].view(shape)
    values = values.to(dtype)
    if layout == "step":
        return values[(slice(None, None, 2),) * len(shape)]
    return values.permute(tuple(reversed(range(len(shape))))) if layout == "turned" else values


def outcome(call, *args, **kwargs):
    """The result, or the type of its error."""
    try:
        return call(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        return type(error)


def assert_same(got, want):
    if isinstance(want, type):
        assert got is want
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        assert got.shape == want.shape


@drawing
@given(policies, st.lists(sizes, max_size=3), st.data(), st.sampled_from([1, 2, -3, 0.5, math.inf]))
def test_add_is_torchs(policy, shape, data, alpha):
    a = data.draw(tensors(shape))
    b = data.draw(tensors(shape[data.draw(st.integers(0, len(shape))) :]))
    assert_same(outcome(POLICIES[policy].add, a, b, alpha=alpha), outcome(torch.add, a, b, alpha=alpha))


@drawing
@given(policies, st.lists(sizes, min_size=3, max_size=3), st.data())
def test_matmul_is_torchs(policy, shape, data):
    n, k, m = shape
    a, b = data.draw(tensors([n, k])), data.draw(tensors([k, m]))
    assert_same(outcome(POLICIES[policy].matmul, a, b), outcome(torch.matmul, a, b))


@drawing
@given(policies, st.lists(sizes, min_size=1, max_size=3), st.data(), st.sampled_from([0.0, 1e-6, 1.0]))
def test_rms_norm_is_its_formula(policy, shape, data, eps):
    dtype = data.draw(st.sampled_from(FLOATS))
    x, weight = data.draw(tensors(shape, [dtype])), data.draw(tensors(shape[-1:], [dtype]))
    exact = x.double()
    want = exact * (exact.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()
    got = POLICIES[policy].rms_norm(x, weight, eps)
    assert (got.dtype, got.shape) == (dtype, x.shape)
    rounded = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 2e-2}[dtype]
    fine = (exact.square() < 1e38) & (exact.abs() > 1e-30) & want.isfinite()
    if fine.all():  # what overflows on the way is compared in test_rms_norm.py
        torch.testing.assert_close(got.double(), want.to(dtype).double(), rtol=rounded, atol=rounded)


@drawing
@given(policies, st.integers(0, 8), st.data(), st.sampled_from([-1.0, 0.0, 0.3, 1.0, math.nan]))
def test_nms_keeps_what_its_definition_keeps(policy, n, data, threshold):
    boxes = data.draw(tensors([n, 4], [torch.float32, torch.float64]))
    scores = data.draw(tensors([n], [boxes.dtype]))
    kept = outcome(POLICIES[policy].nms, boxes, scores, threshold)
    again = outcome(POLICIES["held"].nms, boxes.contiguous(), scores.contiguous(), threshold)
    if isinstance(kept, type):
        assert kept is again
        return
    assert_same(kept, again)
    ranks = torch.nan_to_num(scores, nan=-math.inf)[kept]
    assert (ranks[:-1] >= ranks[1:]).all()
    assert len(set(kept.tolist())) == len(kept) <= n
    assert n == 0 or len(kept) >= 1


def test_another_result_is_found():
    with pytest.raises(AssertionError):
        assert_same(torch.tensor([1.0]), torch.tensor([1.0 + 1e-7]))
    with pytest.raises(AssertionError):
        assert_same(torch.tensor([1.0]), RuntimeError)
