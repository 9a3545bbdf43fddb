// csrc/ops/policies.h: one function, bound under three GIL policies.
#pragma once

#include <atomic>
#include <optional>

#include "gil.h"

namespace torchgil {

/// The Python modules that hold the same functions under another policy each.
struct PolicyModules {
  pybind11::module_ released;
  pybind11::module_ held;
  pybind11::module_ adaptive;
};

/// Seconds of estimated work below which `adaptive` keeps the GIL.
inline std::atomic<double> adaptive_threshold{100e-6};

/// Binds `function` as `name` in all three modules. It takes tensors and
/// numbers, never Python objects: while it runs, there may be no GIL.
/// `estimate` takes the same arguments and returns seconds.
template <class R, class... Args, class Estimate, class... Extra>
void def_policies(
    PolicyModules& m,
    const char* name,
    R (*function)(Args...),
    Estimate estimate,
    const Extra&... extra) {
  namespace py = pybind11;
  // GIL: held on entry, released while the function runs.
  m.released.def(name, function, py::call_guard<ReleaseWindow>(), extra...);
  // GIL: held throughout.
  m.held.def(name, function, extra...);
  // GIL: held on entry, released while the function runs if that is long.
  m.adaptive.def(
      name,
      [function, estimate](Args... args) -> R {
        std::optional<ReleaseWindow> window;
        if (estimate(args...) >=
            adaptive_threshold.load(std::memory_order_relaxed)) {
          window.emplace();
        }
        return function(args...);
      },
      extra...);
}

} // namespace torchgil
