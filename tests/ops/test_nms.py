"""nms: equal to a plain-Python reference, and defined where torch's peers are not."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchgil

from .conftest import boxes


def reference(boxes, scores, threshold):
    boxes, scores = boxes.double().tolist(), scores.double().tolist()
    scores = [-math.inf if math.isnan(s) else s for s in scores]
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        i = left.pop(0)
        kept.append(i)
        rest = []
        for j in left:
            a, b = boxes[i], boxes[j]
            width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            union = area[i] + area[j] - width * height
            if union == 0 or math.isnan(union) or not width * height / union > threshold:
                rest.append(j)
        left = rest
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("policy", ["released", "held", "adaptive"])
def test_random_boxes(policy, threshold, dtype):
    torch.manual_seed(3)
    b, s = boxes(200).to(dtype), torch.rand(200).to(dtype)
    kept = getattr(torchgil, policy).nms(b, s, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == reference(b, s, threshold)


coordinate = st.integers(0, 6).map(float)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[coordinate] * 4, st.integers(0, 3)), max_size=12),
    st.sampled_from([0.0, 1 / 3, 0.5, 1.0]),
)
def test_few_values_so_that_ties_duplicates_and_empty_boxes_abound(rows, threshold):
    b = torch.tensor([[min(x, u), min(y, v), max(x, u), max(y, v)] for x, y, u, v, _ in rows]).reshape(-1, 4)
    s = torch.tensor([float(row[4]) for row in rows])
    assert torchgil.released.nms(b, s, threshold).tolist() == reference(b, s, threshold)


def test_no_boxes_give_no_indices():
    kept = torchgil.released.nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


def test_duplicates_keep_the_lowest_index_and_boxes_without_area_stay():
    same = torch.tensor([[0.0, 0, 2, 2]] * 4)
    assert torchgil.released.nms(same, torch.ones(4), 0.5).tolist() == [0]
    points = torch.tensor([[1.0, 1, 1, 1]] * 3)
    assert torchgil.released.nms(points, torch.ones(3), 0.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("where", [*itertools.product(range(3), range(4))])
def test_a_nan_coordinate_overlaps_nothing(where):
    b = torch.tensor([[0.0, 0, 2, 2]] * 3)
    b[where] = float("nan")
    kept = torchgil.released.nms(b, torch.tensor([3.0, 2, 1]), 0.1).tolist()
    other = min(i for i in range(3) if i != where[0])
    assert kept == sorted({where[0], other})


def test_a_nan_score_counts_as_the_lowest():
    apart = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    nan = float("nan")
    assert torchgil.released.nms(apart, torch.tensor([nan, 1.0, -5.0]), 0.5).tolist() == [1, 2, 0]
    assert torchgil.released.nms(apart, torch.tensor([nan] * 3), 0.5).tolist() == [0, 1, 2]


def test_infinite_coordinates_end():
    b = torch.tensor([[-float("inf"), 0, float("inf"), 1], [0.0, 0, 1, 1], [0.0, 0, 1, 1]])
    assert torchgil.released.nms(b, torch.tensor([3.0, 2, 1]), 0.5).tolist() == [0, 1]


def test_any_strides():
    b, s = boxes(50), torch.rand(100)[::2]
    expected = reference(b, s, 0.4)
    assert torchgil.released.nms(b.t().contiguous().t(), s, 0.4).tolist() == expected
    assert torchgil.released.nms(b.repeat_interleave(2, 0)[::2], s, 0.4).tolist() == expected


@pytest.mark.parametrize("policy", ["released", "held", "adaptive"])
def test_mistakes(policy):
    nms = getattr(torchgil, policy).nms
    b, s = torch.rand(3, 4), torch.rand(3)
    for arguments, error, match in [
        ((torch.rand(3, 5), s, 0.5), ValueError, r"nms: boxes must have shape \[n, 4\], got \[3, 5\]"),
        ((torch.rand(4), s, 0.5), ValueError, r"boxes must have shape \[n, 4\], got \[4\]"),
        ((b, torch.rand(2), 0.5), ValueError, r"scores must have shape \[3\], one for each box, got \[2\]"),
        ((b, torch.rand(3, 1), 0.5), ValueError, r"scores must have shape"),
        ((b.long(), s, 0.5), TypeError, r"floating dtype, got Long and Float"),
        ((b, s.to(torch.complex64), 0.5), TypeError, r"floating dtype"),
        ((b, s, -0.1), ValueError, r"iou_threshold must be in \[0, 1\], got -0.1"),
        ((b, s, 1.5), ValueError, r"iou_threshold must be in \[0, 1\]"),
        ((b, s, float("nan")), ValueError, r"iou_threshold must be in \[0, 1\], got nan"),
        ((b, s, "half"), TypeError, r"incompatible function arguments"),
    ]:
        with pytest.raises(error, match=match):
            nms(*arguments)


def test_scores_without_data_are_refused_since_the_results_size_is_in_them():
    with pytest.raises(RuntimeError, match="data-dependent shape"):
        torchgil.released.nms(boxes(3), torch.rand(3, device="meta"), 0.5)
