// csrc/torch/ops/kernels.h: what the ops do, without Python and without the
// GIL.
//
// A kernel runs with the GIL released or held, as its caller chose, and never
// touches it: through torch.ops it has been released before the kernel starts,
// and a second release would abort the process.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>

#include <tuple>

namespace torchgil::kernels {

// Elementwise and matrix product: ATen's own, on any device.
at::Tensor add(
    const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha);
/// The same where both are dense CPU tensors: ATen's kernel without a second
/// dispatch.
at::Tensor add_cpu(
    const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha);
at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and
/// Sennrich 2019). Sums are float32 for bfloat16 and float16.
at::Tensor rms_norm_cpu(
    const at::Tensor& x, const at::Tensor& weight, double eps);
/// d/dx and d/dweight of rms_norm, for the gradient of its result.
std::tuple<at::Tensor, at::Tensor> rms_norm_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps);

// The same from ATen ops: for other devices, and where a derivative of a
// derivative is asked for.
at::Tensor rms_norm_composed(
    const at::Tensor& x, const at::Tensor& weight, double eps);
std::tuple<at::Tensor, at::Tensor> rms_norm_backward_composed(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps);
/// Raises the user's mistake, if there is one, in the order of the arguments.
void check_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// Greedy non-maximum suppression, serial.
at::Tensor nms_cpu(
    const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold);

/// Burns one core for `seconds`; returns how many rounds of arithmetic it did.
int64_t spin(double seconds);
/// Blocks for `seconds`.
void sleep(double seconds);

} // namespace torchgil::kernels
