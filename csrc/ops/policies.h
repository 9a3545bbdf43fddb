// csrc/ops/policies.h: one function, bound under three GIL policies.
#pragma once

#include <atomic>
#include <optional>
#include <type_traits>

#include "gil.h"
#include "ops/arguments.h"

namespace torchgil {

/// The Python modules that hold the same functions under another policy each.
struct PolicyModules {
  pybind11::module_ released;
  pybind11::module_ held;
  pybind11::module_ adaptive;
};

/// Seconds of estimated work below which `adaptive` keeps the GIL.
inline std::atomic<double> adaptive_threshold{100e-6};

/// torch.ops.torchgil.<name>: lets __torch_function__ of a tensor's class, or
/// of a mode, have the call. GIL: held; Python decides what happens to it.
template <class... Arguments>
pybind11::object call_torch_ops(
    const char* name, const Arguments&... arguments) {
  namespace py = pybind11;
  const auto source = [](const auto& argument) -> py::object {
    if constexpr (requires { argument.source; }) {
      return py::reinterpret_borrow<py::object>(argument.source);
    } else {
      return py::cast(argument);
    }
  };
  const auto op =
      py::module_::import("torch").attr("ops").attr("torchgil").attr(name);
  if constexpr ((std::is_same_v<Arguments, ScalarArgument> || ...)) {
    // add's alpha, keyword-only in the schema, stands last.
    py::tuple all = py::make_tuple(source(arguments)...);
    const size_t last = all.size() - 1;
    return op(
        *py::tuple(all[py::slice(0, static_cast<py::ssize_t>(last), 1)]),
        py::arg("alpha") = all[last]);
  } else {
    return op(source(arguments)...);
  }
}

/// Binds `function` as `name`; `run` decides about the GIL: it gets the call,
/// ready to be made, and its arguments.
template <class Run, class R, class... Args, class... Extra>
void def_op(
    pybind11::module_& m,
    const char* name,
    R (*function)(Args...),
    Run run,
    const Extra&... extra) {
  namespace py = pybind11;
  m.def(
      name,
      [name, function, run](
          typename ArgumentOf<Args>::type... args) -> py::object {
        if ((is_overloaded(args) || ...)) [[unlikely]] {
          return call_torch_ops(name, args...);
        }
        const auto call = [&] { return function(unwrap(args)...); };
        if constexpr (std::is_void_v<R>) {
          run(call, unwrap(args)...);
          return py::none();
        } else {
          return to_python(run(call, unwrap(args)...));
        }
      },
      extra...);
}

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
  // GIL: held on entry, released while the kernel runs.
  const auto released = [](const auto& call, const auto&...) {
    ReleaseWindow window;
    return call();
  };
  // GIL: held throughout.
  const auto held = [](const auto& call, const auto&...) { return call(); };
  // GIL: held on entry, released while the kernel runs if that will be long.
  const auto adaptive = [estimate](const auto& call, const auto&... args) {
    std::optional<ReleaseWindow> window;
    if (estimate(args...) >=
        adaptive_threshold.load(std::memory_order_relaxed)) {
      window.emplace();
    }
    return call();
  };
  def_op(m.released, name, function, released, extra...);
  def_op(m.held, name, function, held, extra...);
  def_op(m.adaptive, name, function, adaptive, extra...);
}

} // namespace torchgil
