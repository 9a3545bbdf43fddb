// csrc/torch/ops/estimate.h: how long a call of an op will take, roughly, in
// seconds.
//
// For the adaptive policy, which only asks whether that is more than about
// 100 us. So the estimates need the right power of ten, no allocation and a few
// nanoseconds; the rates are of one core of a server of the 2020s. On another
// device a call only queues work, or waits for a full queue: never short
// enough to be worth keeping the GIL for.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace torchgil::estimate {

// From the cache, where what a call of 100 us touches usually is.
inline constexpr double kBytesPerSecond = 2e10;
inline constexpr double kMultiplyAddsPerSecond = 2e10;
// Boxes compared with boxes in nms, in double precision.
inline constexpr double kPairsPerSecond = 4e8;
inline constexpr double kForEver = std::numeric_limits<double>::infinity();

/// Elements of a dense CPU tensor; infinite for any other, and for symbols.
inline double elements(const at::Tensor& t) {
  if (!t.is_cpu() || t.layout() != at::kStrided || t.is_nested() ||
      t.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    return kForEver;
  }
  return static_cast<double>(t.numel());
}

inline double bytes(const at::Tensor& t) {
  return elements(t) * static_cast<double>(t.itemsize());
}

/// Elements of what a and b, both dense CPU tensors, broadcast to.
inline double broadcast_elements(const at::Tensor& a, const at::Tensor& b) {
  double elements = 1;
  for (int64_t from_last = 1; from_last <= std::max(a.dim(), b.dim());
       ++from_last) {
    const int64_t of_a = from_last <= a.dim() ? a.size(-from_last) : 1;
    const int64_t of_b = from_last <= b.dim() ? b.size(-from_last) : 1;
    elements *= static_cast<double>(of_a == 1 ? of_b : of_a);
  }
  return elements;
}

inline double add(
    const at::Tensor& a, const at::Tensor& b, const at::Scalar& /*alpha*/) {
  const double read = bytes(a) + bytes(b);
  if (!std::isfinite(read)) {
    return kForEver;
  }
  const auto itemsize =
      static_cast<double>(std::max(a.itemsize(), b.itemsize()));
  return (read + broadcast_elements(a, b) * itemsize) / kBytesPerSecond;
}

inline double matmul(const at::Tensor& a, const at::Tensor& b) {
  if (a.dim() == 0 || b.dim() == 0 || !std::isfinite(elements(a)) ||
      !std::isfinite(elements(b))) {
    return kForEver; // an error, or nothing we know
  }
  const auto inner = static_cast<double>(a.size(-1));
  const auto columns = b.dim() == 1 ? 1.0 : static_cast<double>(b.size(-1));
  const auto rows = a.dim() == 1 ? 1.0 : static_cast<double>(a.size(-2));
  if (inner == 0 || columns == 0 || rows == 0) {
    return 0;
  }
  const double batches =
      std::max(elements(a) / (rows * inner), elements(b) / (inner * columns));
  return batches * rows * inner * columns / kMultiplyAddsPerSecond;
}

inline double rms_norm(const at::Tensor& x, const at::Tensor&, double) {
  return 3 * bytes(x) / kBytesPerSecond; // two reads, one write
}

inline double nms(const at::Tensor& boxes, const at::Tensor&, double) {
  const double n = boxes.dim() > 0 ? elements(boxes) / 4 : 0;
  return n * n / 2 / kPairsPerSecond;
}

inline double seconds(double seconds) {
  return seconds;
}

} // namespace torchgil::estimate
