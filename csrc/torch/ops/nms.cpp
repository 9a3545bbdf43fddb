// csrc/torch/ops/nms.cpp: greedy non-maximum suppression on the CPU, serial.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/kernels.h"
#include "ops/witness.h"

namespace torchgil::kernels {
namespace {

/// Boxes in the order of decreasing score, one array per coordinate so that
/// the inner loop is vectorised. Double throughout: the intersection over union
/// of float boxes then compares as it would on paper.
struct SortedBoxes {
  explicit SortedBoxes(size_t n) : x1(n), y1(n), x2(n), y2(n), area(n) {}
  std::vector<double> x1, y1, x2, y2, area;
};

template <class scalar_t>
SortedBoxes gather(const at::Tensor& boxes, const std::vector<int64_t>& order) {
  SortedBoxes out(order.size());
  const auto* data = boxes.const_data_ptr<scalar_t>();
  const int64_t row = boxes.stride(0);
  const int64_t col = boxes.stride(1);
  for (size_t i = 0; i < order.size(); ++i) {
    const auto* box = data + order[i] * row;
    out.x1[i] = static_cast<double>(box[0]);
    out.y1[i] = static_cast<double>(box[col]);
    out.x2[i] = static_cast<double>(box[2 * col]);
    out.y2[i] = static_cast<double>(box[3 * col]);
    out.area[i] = (out.x2[i] - out.x1[i]) * (out.y2[i] - out.y1[i]);
  }
  return out;
}

template <class scalar_t>
std::vector<int64_t> by_decreasing_score(const at::Tensor& scores) {
  const auto* data = scores.const_data_ptr<scalar_t>();
  const int64_t step = scores.dim() == 1 ? scores.stride(0) : 1;
  std::vector<double> keys(scores.numel());
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto score =
        static_cast<double>(data[static_cast<int64_t>(i) * step]);
    // A NaN would break the sort's strict weak order: it counts as the lowest.
    keys[i] = std::isnan(score) ? -INFINITY : score;
  }
  std::vector<int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    return keys[i] > keys[j];
  });
  return order;
}

/// Marks every box after `i` that overlaps it by more than the threshold.
void suppress(
    const SortedBoxes& boxes,
    size_t i,
    double iou_threshold,
    std::vector<unsigned char>& suppressed) {
  const double x1 = boxes.x1[i], y1 = boxes.y1[i];
  const double x2 = boxes.x2[i], y2 = boxes.y2[i];
  const double area = boxes.area[i];
  for (size_t j = i + 1; j < suppressed.size(); ++j) {
    const double width = std::min(x2, boxes.x2[j]) - std::max(x1, boxes.x1[j]);
    const double height = std::min(y2, boxes.y2[j]) - std::max(y1, boxes.y1[j]);
    const double both = std::max(width, 0.0) * std::max(height, 0.0);
    // 0/0, two boxes without area, is NaN: no overlap. So is a NaN coordinate.
    suppressed[j] |= both / (area + boxes.area[j] - both) > iou_threshold;
  }
}

} // namespace

at::Tensor nms_cpu(
    const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  TORCH_CHECK_VALUE(
      boxes.dim() == 2 && boxes.size(1) == 4,
      "nms: boxes must have shape [n, 4], got ",
      boxes.sizes());
  TORCH_CHECK_VALUE(
      scores.dim() == 1 && scores.size(0) == boxes.size(0),
      "nms: scores must have shape [",
      boxes.size(0),
      "], one for each box, got ",
      scores.sizes());
  TORCH_CHECK_TYPE(
      at::isFloatingType(boxes.scalar_type()) &&
          at::isFloatingType(scores.scalar_type()),
      "nms: boxes and scores must be of a floating dtype, got ",
      boxes.scalar_type(),
      " and ",
      scores.scalar_type());
  TORCH_CHECK_VALUE(
      iou_threshold >= 0 && iou_threshold <= 1,
      "nms: iou_threshold must be in [0, 1], got ",
      iou_threshold);
  KernelRegion region("nms");

  std::vector<int64_t> order;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf,
      at::kBFloat16,
      scores.scalar_type(),
      "torchgil::nms scores",
      [&] { order = by_decreasing_score<scalar_t>(scores); });
  SortedBoxes sorted(0);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf,
      at::kBFloat16,
      boxes.scalar_type(),
      "torchgil::nms boxes",
      [&] { sorted = gather<scalar_t>(boxes, order); });

  std::vector<int64_t> kept;
  std::vector<unsigned char> suppressed(order.size(), 0);
  for (size_t i = 0; i < order.size(); ++i) {
    if (suppressed[i] == 0) {
      kept.push_back(order[i]);
      suppress(sorted, i, iou_threshold, suppressed);
    }
  }
  auto result = at::empty(
      {static_cast<int64_t>(kept.size())}, boxes.options().dtype(at::kLong));
  std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

} // namespace torchgil::kernels
