"""adaptive: the GIL is kept below the threshold, released from it on."""

import math

import pytest
import torch

import torchgil
from torchgil.ops import witness

from ..conftest import run_in_child
from .conftest import boxes


@pytest.fixture
def threshold():
    before = torchgil.adaptive_threshold()
    yield torchgil.set_adaptive_threshold
    torchgil.set_adaptive_threshold(before)


def held_in(call, *arguments):
    with witness() as records:
        call(*arguments)
    return records[0].held_gil


def test_the_default_is_100_us():
    assert torchgil.adaptive_threshold() == pytest.approx(100e-6)


@pytest.mark.parametrize("op", ["spin", "sleep"])
def test_timed_ops_are_estimated_by_their_argument(op, threshold):
    threshold(1e-3)
    assert held_in(getattr(torchgil.adaptive, op), 0.9e-3)
    assert not held_in(getattr(torchgil.adaptive, op), 1e-3)


def test_zero_always_releases_and_infinity_never(threshold):
    threshold(0)
    assert not held_in(torchgil.adaptive.add, torch.ones(1), torch.ones(1))
    threshold(math.inf)
    assert held_in(torchgil.adaptive.spin, 1e-3)


def test_each_estimate_grows_with_the_work(threshold):
    """Small work is held, large released, and the border lies within a factor of ten of 100 us."""
    cases = {
        "add": lambda n: (torch.ones(n), torch.ones(n)),
        "matmul": lambda n: (torch.ones(n, n), torch.ones(n, n)),
        "rms_norm": lambda n: (torch.ones(n, 64), torch.ones(64)),
        "nms": lambda n: (boxes(n), torch.rand(n), 0.5),
    }
    border = {"add": (2_000, 2_000_000), "matmul": (20, 500), "rms_norm": (20, 20_000), "nms": (20, 2_000)}
    for op, make in cases.items():
        small, large = border[op]
        assert held_in(getattr(torchgil.adaptive, op), *make(small)), op
        assert not held_in(getattr(torchgil.adaptive, op), *make(large)), op


def test_an_outer_sum_is_estimated_by_its_result():
    assert not held_in(torchgil.adaptive.add, torch.ones(2000, 1), torch.ones(1, 2000))


@pytest.mark.parametrize(
    ("a", "b"), [((64, 512), (512,)), ((512,), (64, 512)), ((32, 256), (1, 256)), ((64, 512), (64, 1))]
)
def test_a_bias_is_estimated_by_its_result(a, b):
    assert held_in(torchgil.adaptive.add, torch.ones(a), torch.ones(b))


def test_a_wide_bias_is_released():
    assert not held_in(torchgil.adaptive.add, torch.ones(4000, 512), torch.ones(512))


def test_an_empty_broadcast_is_no_work():
    assert held_in(torchgil.adaptive.add, torch.ones(0, 100_000), torch.ones(100_000))


def test_a_batched_product_is_estimated_by_all_of_it():
    assert held_in(torchgil.adaptive.matmul, torch.ones(32, 32), torch.ones(32, 32))
    assert not held_in(torchgil.adaptive.matmul, torch.ones(500, 32, 32), torch.ones(32, 32))


def test_another_device_only_queues_and_is_released():
    x = torch.ones(2, device="meta")
    assert not held_in(torchgil.adaptive.add, x, x)


@pytest.mark.parametrize("seconds", [-1, float("nan"), -math.inf])
def test_a_threshold_that_is_none_changes_nothing(seconds, threshold):
    before = torchgil.adaptive_threshold()
    with pytest.raises(ValueError, match="seconds must be a number, 0 or more"):
        threshold(seconds)
    assert torchgil.adaptive_threshold() == before


def test_the_environment_sets_it_in_microseconds():
    child = run_in_child(
        "import torchgil; print(torchgil.adaptive_threshold())", env={"TORCHGIL_ADAPTIVE_THRESHOLD_US": "250"}
    )
    assert float(child.stdout) == pytest.approx(250e-6)


@pytest.mark.parametrize("text", ["fast", "-1", "nan"])
@pytest.mark.parametrize("fresh", [False, True], ids=["torch being there", "before torch"])
def test_a_wrong_environment_is_warned_of_and_breaks_no_import(text, fresh):
    child = run_in_child(
        "import torchgil, torch; print(torchgil.adaptive_threshold())",
        env={"TORCHGIL_ADAPTIVE_THRESHOLD_US": text},
        fresh=fresh,
    )
    assert float(child.stdout) == pytest.approx(100e-6)
    assert (
        child.stderr.count("TORCHGIL_ADAPTIVE_THRESHOLD_US must be a number of microseconds, 0 or more") == 1
    )
    assert f"got {text!r}; it is ignored, and the threshold is 100 us" in child.stderr
