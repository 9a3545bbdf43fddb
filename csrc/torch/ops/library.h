// csrc/torch/ops/library.h: the ops as C++ callables that go through the
// dispatcher.
//
// What torch.ops.torchgil.* reaches from Python, without Python: autograd,
// modes, tensor subclasses and profilers all see the call.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/Scalar.h>

#include <tuple>

namespace torchgil::ops {

at::Tensor add(
    const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha);
at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps);
at::Tensor nms(
    const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold);
int64_t spin(double seconds);
void sleep(double seconds);

// From an autograd kernel, which got `keys`, to the kernel below it. Part of
// the same call: another would show twice in profilers and traces, and cost 10
// %.
at::Tensor add_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& a,
    const at::Tensor& b,
    const at::Scalar& alpha);
at::Tensor matmul_below_autograd(
    c10::DispatchKeySet keys, const at::Tensor& a, const at::Tensor& b);
at::Tensor rms_norm_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps);
std::tuple<at::Tensor, at::Tensor> rms_norm_backward_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps);
at::Tensor nms_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& boxes,
    const at::Tensor& scores,
    double iou_threshold);

} // namespace torchgil::ops
