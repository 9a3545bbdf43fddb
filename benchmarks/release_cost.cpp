// benchmarks/release_cost.cpp: a release and a reacquire of the GIL, and
// nothing else, counted in nanoseconds. Compiled by bench_call_overhead.py.
#include <chrono>
#include <cstdint>

#include <torchgil/gil.h>

namespace {

// GIL: held on entry and on return; released and taken back `count` times.
template <class Pair>
double nanoseconds_per_pair(int64_t count, Pair pair) {
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) {
    pair();
  }
  const std::chrono::duration<double, std::nano> took =
      std::chrono::steady_clock::now() - begin;
  return took.count() / static_cast<double>(count);
}

// What CPython's own C code does around a blocking call.
void raw() {
  Py_BEGIN_ALLOW_THREADS;
  Py_END_ALLOW_THREADS;
}

// What each `released` call does.
void window() {
  const torchgil::ReleaseWindow window;
}

} // namespace

PYBIND11_MODULE(release_cost, m) {
  m.def("raw", [](int64_t n) { return nanoseconds_per_pair(n, &raw); });
  m.def("window", [](int64_t n) { return nanoseconds_per_pair(n, &window); });
}
