// csrc/torch/ops/elementwise.cpp: add, over ATen's.
#include <ATen/ops/add.h>
#include <ATen/ops/add_cpu_dispatch.h>

#include "ops/kernels.h"
#include "ops/witness.h"

namespace torchgil::kernels {

at::Tensor add(
    const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha) {
  KernelRegion region("add");
  return at::add(a, b, alpha);
}

at::Tensor add_cpu(
    const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha) {
  KernelRegion region("add");
  return at::cpu::add(a, b, alpha);
}

} // namespace torchgil::kernels
