// torchgil/policies.h: one function, bound under three GIL policies.
#pragma once

#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <torchgil/arguments.h>
#include <torchgil/gil.h>

#pragma GCC visibility push(hidden)

namespace torchgil {

/// The Python modules that hold the same functions under another policy each:
/// submodules of `m`, named as the policies are. `library` is the op library
/// (TORCH_LIBRARY's first argument) whose ops have the functions' names.
struct PolicyModules {
  PolicyModules(pybind11::module_& m, std::string library)
      : library(std::move(library)),
        released(m.def_submodule(
            "released", "The GIL is released while the kernel runs.")),
        held(m.def_submodule("held", "The GIL is kept while the kernel runs.")),
        adaptive(m.def_submodule(
            "adaptive",
            "The GIL is kept for short work and released for long.")) {}

  std::string library;
  pybind11::module_ released;
  pybind11::module_ held;
  pybind11::module_ adaptive;
};

/// Seconds of estimated work below which `adaptive` keeps the GIL. Each
/// extension has its own: it works without torchgil being installed, and
/// torchgil.set_adaptive_threshold() is for torchgil's ops alone.
inline std::atomic<double> adaptive_threshold{100e-6};

/// Binds adaptive_threshold() and set_adaptive_threshold(seconds) in `m`.
inline void def_adaptive_threshold(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "adaptive_threshold",
      [] { return adaptive_threshold.load(std::memory_order_relaxed); },
      "adaptive_threshold()\n--\n\n");
  m.def(
      "set_adaptive_threshold",
      [](double seconds) {
        if (std::isnan(seconds) || seconds < 0) {
          throw py::value_error(
              "set_adaptive_threshold: seconds must not be negative or NaN, "
              "got " +
              std::string(py::repr(py::float_(seconds))));
        }
        adaptive_threshold.store(seconds, std::memory_order_relaxed);
      },
      "set_adaptive_threshold(seconds)\n--\n\n",
      py::arg("seconds"));
}

/// How torch.ops finds an op, and which arguments it takes by name alone.
struct OpName {
  std::string library;
  const char* name;
  std::vector<const char*> keyword_only;
};

/// The names of the arguments that stand behind py::kw_only().
template <class... Extra>
std::vector<const char*> keyword_only(const Extra&... extra) {
  std::vector<const char*> names;
  bool behind = false;
  const auto look = [&](const auto& each) {
    using Each = std::decay_t<decltype(each)>;
    if constexpr (std::is_same_v<Each, pybind11::kw_only>) {
      behind = true;
    } else if constexpr (std::is_base_of_v<pybind11::arg, Each>) {
      if (behind) {
        names.push_back(each.name);
      }
    }
  };
  (look(extra), ...);
  return names;
}

/// torch.ops.<library>.<name>: lets __torch_function__ of a tensor's class,
/// or of a mode, have the call. GIL: held; Python decides what happens to it.
template <class... Arguments>
pybind11::object call_torch_ops(
    const OpName& op, const Arguments&... arguments) {
  namespace py = pybind11;
  py::list positional;
  (positional.append(to_source(arguments)), ...);
  py::dict keywords;
  for (size_t i = op.keyword_only.size(); i-- > 0;) {
    keywords[op.keyword_only[i]] = positional.attr("pop")();
  }
  return py::module_::import("torch")
      .attr("ops")
      .attr(op.library.c_str())
      .attr(op.name)(*py::tuple(positional), **keywords);
}

/// Binds `function` as the op's name in `m`; `run` decides about the GIL: it
/// gets the call, ready to be made, and its arguments.
template <class Run, class R, class... Args, class... Extra>
void def_op(
    pybind11::module_& m,
    const OpName& op,
    R (*function)(Args...),
    Run run,
    const Extra&... extra) {
  namespace py = pybind11;
  m.def(
      op.name,
      [op, function, run](
          typename ArgumentOf<Args>::type... args) -> py::object {
        if (C10_UNLIKELY((is_overloaded(args) || ...))) {
          return call_torch_ops(op, args...);
        }
        const auto call = [&] { return function(unwrap(args)...); };
        if constexpr (std::is_void_v<R>) {
          run(call, unwrap(args)...);
          return py::none();
        } else {
          return py::cast(run(call, unwrap(args)...));
        }
      },
      extra...);
}

/// Binds `function` as `name` in all three modules. It takes tensors and
/// numbers, never Python objects: while it runs, there may be no GIL.
/// `estimate` takes the same arguments and returns seconds. `extra` is what
/// pybind11's def() takes: a docstring, py::arg, py::kw_only.
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
  const OpName op{m.library, name, keyword_only(extra...)};
  def_op(m.released, op, function, released, extra...);
  def_op(m.held, op, function, held, extra...);
  def_op(m.adaptive, op, function, adaptive, extra...);
}

} // namespace torchgil

#pragma GCC visibility pop
