// csrc/torch/ops/library.cpp: schemas, and which kernel serves which device.
//
// All in C++: a kernel registered from Python takes the GIL back in the middle
// of the op, and spoils what these ops show. The one exception is the fake
// implementation of nms, which only tracing calls: an output whose size depends
// on data needs a symbol that C++ cannot make.
#include "ops/library.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/kernels.h"

namespace torchgil {
namespace {

at::Tensor rms_norm_meta(
    const at::Tensor& x, const at::Tensor& weight, double eps) {
  kernels::check_rms_norm(x, weight, eps);
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_meta(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps) {
  kernels::check_rms_norm(x, weight, eps);
  return {
      at::empty_like(x, at::MemoryFormat::Contiguous),
      at::empty_like(weight, at::MemoryFormat::Contiguous)};
}

at::Tensor nms_elsewhere(
    const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false,
      "nms: only a CPU kernel exists, got boxes on ",
      boxes.device(),
      " and scores on ",
      scores.device(),
      "; move both to the CPU first: nms(boxes.cpu(), scores.cpu(), "
      "iou_threshold)");
}

} // namespace

TORCH_LIBRARY(torchgil, m) {
  // Where torch finds the fake implementation of nms when it traces.
  m.set_python_module("torchgil.ops._fake");
  const std::vector<at::Tag> pt2 = {at::Tag::pt2_compliant_tag};
  m.def("add(Tensor a, Tensor b, *, Scalar alpha=1) -> Tensor", pt2);
  m.def("matmul(Tensor a, Tensor b) -> Tensor", pt2);
  m.def("rms_norm(Tensor x, Tensor weight, float eps=1e-6) -> Tensor", pt2);
  m.def(
      "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, float eps) -> "
      "(Tensor, Tensor)",
      pt2);
  m.def(
      "nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});
  m.def("spin(float seconds) -> int", pt2);
  m.def("sleep(float seconds) -> ()", pt2);
}

// Every device, Meta included, where the kernel is ATen's or takes no tensor.
TORCH_LIBRARY_IMPL(torchgil, CompositeExplicitAutograd, m) {
  m.impl("add", &kernels::add);
  m.impl("matmul", &kernels::matmul);
  m.impl("rms_norm", &kernels::rms_norm_composed);
  m.impl("rms_norm_backward", &kernels::rms_norm_backward_composed);
  m.impl("spin", &kernels::spin);
  m.impl("sleep", &kernels::sleep);
}

TORCH_LIBRARY_IMPL(torchgil, CPU, m) {
  m.impl("add", &kernels::add_cpu);
  m.impl("rms_norm", &kernels::rms_norm_cpu);
  m.impl("rms_norm_backward", &kernels::rms_norm_backward_cpu);
  m.impl("nms", &kernels::nms_cpu);
}

TORCH_LIBRARY_IMPL(torchgil, Meta, m) {
  m.impl("rms_norm", &rms_norm_meta);
  m.impl("rms_norm_backward", &rms_norm_backward_meta);
}

// Not as a composite kernel: that would shadow the fake one of tracing.
TORCH_LIBRARY_IMPL(torchgil, CUDA, m) {
  m.impl("nms", &nms_elsewhere);
}
TORCH_LIBRARY_IMPL(torchgil, MPS, m) {
  m.impl("nms", &nms_elsewhere);
}
TORCH_LIBRARY_IMPL(torchgil, XPU, m) {
  m.impl("nms", &nms_elsewhere);
}

namespace {

template <class Function>
c10::TypedOperatorHandle<Function> handle(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<Function>();
}

// Looked up as the extension is loaded, and so below the definitions: at the
// first call a lookup would take locks, which a fork could leave taken.
const auto add_op = handle<decltype(ops::add)>("torchgil::add");
const auto matmul_op = handle<decltype(ops::matmul)>("torchgil::matmul");
const auto rms_norm_op = handle<decltype(ops::rms_norm)>("torchgil::rms_norm");
const auto rms_norm_backward_op =
    handle<decltype(ops::rms_norm_backward)>("torchgil::rms_norm_backward");
const auto nms_op = handle<decltype(ops::nms)>("torchgil::nms");
const auto spin_op = handle<decltype(ops::spin)>("torchgil::spin");
const auto sleep_op = handle<decltype(ops::sleep)>("torchgil::sleep");

constexpr auto kBelowAutograd = c10::after_ADInplaceOrView_keyset;

} // namespace

namespace ops {

at::Tensor add(
    const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha) {
  return add_op.call(a, b, alpha);
}

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) {
  return matmul_op.call(a, b);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return rms_norm_op.call(x, weight, eps);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps) {
  return rms_norm_backward_op.call(grad, x, weight, eps);
}

at::Tensor nms(
    const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  return nms_op.call(boxes, scores, iou_threshold);
}

int64_t spin(double seconds) {
  return spin_op.call(seconds);
}

void sleep(double seconds) {
  sleep_op.call(seconds);
}

at::Tensor add_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& a,
    const at::Tensor& b,
    const at::Scalar& alpha) {
  return add_op.redispatch(keys & kBelowAutograd, a, b, alpha);
}

at::Tensor matmul_below_autograd(
    c10::DispatchKeySet keys, const at::Tensor& a, const at::Tensor& b) {
  return matmul_op.redispatch(keys & kBelowAutograd, a, b);
}

at::Tensor rms_norm_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps) {
  return rms_norm_op.redispatch(keys & kBelowAutograd, x, weight, eps);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    double eps) {
  return rms_norm_backward_op.redispatch(
      keys & kBelowAutograd, grad, x, weight, eps);
}

at::Tensor nms_below_autograd(
    c10::DispatchKeySet keys,
    const at::Tensor& boxes,
    const at::Tensor& scores,
    double iou_threshold) {
  return nms_op.redispatch(keys & kBelowAutograd, boxes, scores, iou_threshold);
}

} // namespace ops

} // namespace torchgil
