// csrc/torch/ops/rms_norm.cpp: root mean square layer normalisation and its
// backward.
//
// y = x * r * w with r = 1 / sqrt(mean(x^2) + eps), over the last dimension:
// Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/ScalarType.h>

#include <cmath>

#include "ops/kernels.h"
#include "ops/witness.h"

// The row loops are compiled once per instruction set and chosen when the
// module is loaded: a wheel built on one machine runs, and runs fast, on
// another. Not by clang, which has no such clones of templates.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define TORCHGIL_PER_ISA \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TORCHGIL_PER_ISA
#endif

namespace torchgil::kernels {
namespace {

// Elements that make a thread worth waking.
constexpr int64_t kGrain = 16384;

template <class scalar_t>
TORCHGIL_PER_ISA scalar_t sum_of_squares(const scalar_t* x, int64_t n) {
  scalar_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += x[j] * x[j];
  }
  return sum;
}

template <class scalar_t>
TORCHGIL_PER_ISA void scale_row(
    scalar_t* out,
    const scalar_t* x,
    const scalar_t* weight,
    scalar_t r,
    int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    out[j] = x[j] * r * weight[j];
  }
}

/// sum(grad * weight * x), and the sum of squares in the same pass.
template <class scalar_t>
TORCHGIL_PER_ISA scalar_t weighted_dot(
    const scalar_t* grad,
    const scalar_t* x,
    const scalar_t* weight,
    int64_t n,
    scalar_t& squares) {
  scalar_t dot = 0, sum = 0;
#pragma omp simd reduction(+ : dot, sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += x[j] * x[j];
    dot += grad[j] * weight[j] * x[j];
  }
  squares = sum;
  return dot;
}

/// dx = r (g w - x c) and dw += g x r, with c = r^2 dot / n.
template <class scalar_t>
TORCHGIL_PER_ISA void backward_row(
    scalar_t* grad_x,
    scalar_t* grad_weight,
    const scalar_t* grad,
    const scalar_t* x,
    const scalar_t* weight,
    scalar_t r,
    scalar_t c,
    int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    grad_x[j] = r * (grad[j] * weight[j] - x[j] * c);
    grad_weight[j] += grad[j] * x[j] * r;
  }
}

template <class scalar_t>
void forward(
    const at::Tensor& out,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps,
    int64_t rows,
    int64_t n) {
  auto* out_data = out.mutable_data_ptr<scalar_t>();
  const auto* x_data = x.const_data_ptr<scalar_t>();
  const auto* weight_data = weight.const_data_ptr<scalar_t>();
  at::parallel_for(0, rows, kGrain / n + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto* row = x_data + i * n;
      const scalar_t r = 1 /
          std::sqrt(sum_of_squares(row, n) / static_cast<scalar_t>(n) +
                    static_cast<scalar_t>(eps));
      scale_row(out_data + i * n, row, weight_data, r, n);
    }
  });
}

template <class scalar_t>
void backward(
    const at::Tensor& grad_x,
    const at::Tensor& grad_weight,
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps,
    int64_t rows,
    int64_t n) {
  auto* grad_x_data = grad_x.mutable_data_ptr<scalar_t>();
  const auto* grad_data = grad.const_data_ptr<scalar_t>();
  const auto* x_data = x.const_data_ptr<scalar_t>();
  const auto* weight_data = weight.const_data_ptr<scalar_t>();
  // parallel_for does this first, and it can change the number of threads.
  at::internal::lazy_init_num_threads();
  // One partial sum of the weight's gradient per thread: no atomics, and the
  // same bits every time for the same number of threads.
  const at::Tensor partial = at::zeros(
      {at::get_num_threads(), n},
      x.options().dtype(c10::CppTypeToScalarType<scalar_t>::value));
  auto* partial_data = partial.mutable_data_ptr<scalar_t>();
  at::parallel_for(0, rows, kGrain / n + 1, [&](int64_t begin, int64_t end) {
    scalar_t* const grad_weight_row = partial_data + at::get_thread_num() * n;
    for (int64_t i = begin; i < end; ++i) {
      const auto* grad_row = grad_data + i * n;
      const auto* row = x_data + i * n;
      scalar_t squares = 0;
      const scalar_t dot = weighted_dot(grad_row, row, weight_data, n, squares);
      const scalar_t r = 1 /
          std::sqrt(squares / static_cast<scalar_t>(n) +
                    static_cast<scalar_t>(eps));
      const scalar_t c = r * r * dot / static_cast<scalar_t>(n);
      backward_row(
          grad_x_data + i * n,
          grad_weight_row,
          grad_row,
          row,
          weight_data,
          r,
          c,
          n);
    }
  });
  grad_weight.copy_(partial.sum(0));
}

/// What the sums are in: float32 for halves, and the wider of two dtypes.
at::ScalarType sum_dtype(const at::Tensor& x, const at::Tensor& weight) {
  return at::promote_types(
      at::toOpMathType(x.scalar_type()),
      at::toOpMathType(weight.scalar_type()));
}

} // namespace

void check_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK_TYPE(
      at::isFloatingType(x.scalar_type()) &&
          at::isFloatingType(weight.scalar_type()),
      "rms_norm: x and weight must be of a floating dtype, got ",
      x.scalar_type(),
      " and ",
      weight.scalar_type());
  TORCH_CHECK_VALUE(
      x.dim() >= 1,
      "rms_norm: x must have at least one dimension, got a 0-d tensor");
  TORCH_CHECK_VALUE(
      weight.dim() == 1,
      "rms_norm: weight must have shape [",
      x.sym_size(-1),
      "], x's last dimension, got ",
      weight.sym_sizes());
  TORCH_CHECK_VALUE(
      TORCH_GUARD_OR_TRUE(weight.sym_size(0).sym_eq(x.sym_size(-1))),
      "rms_norm: weight must have shape [",
      x.sym_size(-1),
      "], x's last dimension, got ",
      weight.sym_sizes());
  TORCH_CHECK_VALUE(
      x.device() == weight.device(),
      "rms_norm: x and weight must be on one device, got ",
      x.device(),
      " and ",
      weight.device());
  TORCH_CHECK_VALUE(
      std::isfinite(eps) && eps >= 0,
      "rms_norm: eps must be finite and not negative, got ",
      eps);
}

// Halves are widened as whole tensors: ATen's conversions are vectorised, and
// three short passes beat one long one that converts element by element
// (float16, [2048, 1024], one thread: 12.4 ms so).
at::Tensor rms_norm_cpu(
    const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_rms_norm(x, weight, eps);
  KernelRegion region("rms_norm");
  const auto dtype = sum_dtype(x, weight);
  const at::Tensor rows = x.to(dtype).contiguous();
  const at::Tensor scale = weight.to(dtype).contiguous();
  const at::Tensor out = at::empty_like(rows);
  const int64_t n = x.size(-1);
  if (x.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES(dtype, "torchgil::rms_norm", [&] {
      forward<scalar_t>(out, rows, scale, eps, x.numel() / n, n);
    });
  }
  return out.to(x.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps) {
  check_rms_norm(x, weight, eps);
  TORCH_CHECK_VALUE(
      grad.sizes() == x.sizes(),
      "rms_norm_backward: grad must have x's shape ",
      x.sizes(),
      ", got ",
      grad.sizes());
  KernelRegion region("rms_norm_backward");
  const auto dtype = sum_dtype(x, weight);
  const at::Tensor grad_rows = grad.to(dtype).contiguous();
  const at::Tensor rows = x.to(dtype).contiguous();
  const at::Tensor scale = weight.to(dtype).contiguous();
  const at::Tensor grad_x = at::empty_like(rows);
  const int64_t n = x.size(-1);
  const at::Tensor grad_weight =
      x.numel() > 0 ? at::empty_like(scale) : at::zeros_like(scale);
  if (x.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES(dtype, "torchgil::rms_norm_backward", [&] {
      backward<scalar_t>(
          grad_x, grad_weight, grad_rows, rows, scale, eps, x.numel() / n, n);
    });
  }
  return {grad_x.to(x.scalar_type()), grad_weight.to(weight.scalar_type())};
}

at::Tensor rms_norm_composed(
    const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_rms_norm(x, weight, eps);
  KernelRegion region("rms_norm");
  const at::Tensor up = x.to(at::toOpMathType(x.scalar_type()));
  const at::Tensor r = at::rsqrt(at::mean(up * up, -1, /*keepdim=*/true) + eps);
  return (up * r * weight).to(x.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_composed(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps) {
  check_rms_norm(x, weight, eps);
  KernelRegion region("rms_norm_backward");
  const auto dtype = at::toOpMathType(x.scalar_type());
  const at::Tensor up = x.to(dtype), g = grad.to(dtype), w = weight.to(dtype);
  const at::Tensor r = at::rsqrt(at::mean(up * up, -1, /*keepdim=*/true) + eps);
  const at::Tensor normed = up * r;
  const at::Tensor gw = g * w;
  const at::Tensor grad_x =
      r * (gw - normed * at::mean(gw * normed, -1, /*keepdim=*/true));
  const at::Tensor per_row = (g * normed).flatten(0, -2);
  const at::Tensor grad_weight = x.dim() == 1 ? g * normed : per_row.sum(0);
  return {grad_x.to(x.scalar_type()), grad_weight.to(weight.scalar_type())};
}

} // namespace torchgil::kernels
