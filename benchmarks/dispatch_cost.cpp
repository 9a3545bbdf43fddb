// benchmarks/dispatch_cost.cpp: what a view costs when C++ calls it, without
// boxing and without an interpreter; and what an observer of it adds, part by
// part. Compiled by bench_forward.py and bench_tracing.py.
#include <ATen/core/Tensor.h>
#include <ATen/ops/view.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/utils/pybind.h>

#include <time.h>

#include <chrono>
#include <cstdint>
#include <memory>

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

enum Parts : int { kClock = 1, kGil = 2, kName = 4 };

volatile int64_t sink;

void read_clock() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  sink = t.tv_nsec;
}

template <int parts>
std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& op) {
  if constexpr (parts & kName) {
    sink = op.name()[0];
  }
  if constexpr (parts & kClock) {
    read_clock();
  }
  if constexpr (parts & kGil) {
    sink = PyGILState_Check();
  }
  return nullptr;
}

template <int parts>
void on_end(const at::RecordFunction&, at::ObserverContext*) {
  if constexpr (parts & kClock) {
    read_clock();
  }
}

// The same, seen by an observer as torchgil's, that does these parts alone.
template <int parts>
double seconds_observed(const at::Tensor& x, int64_t count) {
  const auto handle = at::addGlobalCallback(
      at::RecordFunctionCallback(&on_start<parts>, &on_end<parts>)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
  const double seconds = seconds_per_view(x, count);
  at::removeCallback(handle);
  return seconds;
}

} // namespace

PYBIND11_MODULE(dispatch_cost, m) {
  m.def("seconds_per_view", &seconds_per_view);
  m.def("observed", &seconds_observed<0>);
  m.def("observed_clock", &seconds_observed<kClock>);
  m.def("observed_gil", &seconds_observed<kGil>);
  m.def("observed_name", &seconds_observed<kName>);
}
