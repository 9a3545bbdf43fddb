"""spin and sleep: their length, and what they refuse."""

import time

import pytest

import torchgil

from .conftest import POLICIES


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("op", ["spin", "sleep"])
def test_at_least_that_long(op, policy):
    begin = time.monotonic()
    getattr(POLICIES[policy], op)(0.02)
    assert time.monotonic() - begin >= 0.02


def test_spin_burns_the_core_and_sleep_does_not():
    begin = time.thread_time()
    rounds = torchgil.released.spin(0.2)
    burned = time.thread_time() - begin
    assert isinstance(rounds, int)
    assert rounds > 10_000
    begin = time.thread_time()
    assert torchgil.released.sleep(0.2) is None
    assert time.thread_time() - begin < burned / 2


def test_no_time_is_no_time():
    assert torchgil.held.spin(0) >= 0
    assert torchgil.held.sleep(0) is None


@pytest.mark.parametrize("seconds", [-1e-9, float("nan"), float("inf"), -float("inf"), 1e10])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("op", ["spin", "sleep"])
def test_a_time_that_is_none_is_a_value_error(op, policy, seconds):
    with pytest.raises(ValueError, match=rf"{op}: seconds must be finite and in \[0, 1e9\], got"):
        getattr(POLICIES[policy], op)(seconds)


@pytest.mark.parametrize("op", ["spin", "sleep"])
def test_what_is_no_number_is_a_type_error(op):
    with pytest.raises(TypeError, match="incompatible function arguments"):
        getattr(torchgil.released, op)("long")
