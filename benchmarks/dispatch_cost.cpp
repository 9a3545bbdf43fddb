// benchmarks/dispatch_cost.cpp: what a view costs when C++ calls it, without
// boxing and without an interpreter. Compiled by bench_forward.py.
#include <ATen/core/Tensor.h>
#include <ATen/ops/view.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <cstdint>

namespace {

// GIL: held. Views of views, as in a chain of instructions.
double seconds_per_view(at::Tensor x, int64_t count) {
  const c10::InferenceMode inference;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) {
    x = x.view({4});
  }
  const std::chrono::duration<double> took =
      std::chrono::steady_clock::now() - begin;
  return took.count() / static_cast<double>(count);
}

} // namespace

PYBIND11_MODULE(dispatch_cost, m) {
  m.def("seconds_per_view", &seconds_per_view);
}
