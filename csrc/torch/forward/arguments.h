// csrc/torch/forward/arguments.h: checks the leaves of a call's arguments.
#pragma once

#include "inputs.h"
#include "program.h"

#include <c10/util/SmallVector.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace torchgil::forward {

/// Checks what a caller gives against what was exported, while the GIL is
/// held and before anything runs. Python fills it once, before the first call.
class Arguments {
 public:
  using Values = c10::SmallVector<c10::IValue, 8>;

  /// A size that may change; `high` is None if it has no bound.
  int64_t add_dimension(std::string name, int64_t low, pybind11::object high);

  /// A tensor; its sizes are numbers, or -1 - d for dimension d.
  void add_tensor(
      std::string name,
      pybind11::handle dtype,
      pybind11::handle device,
      pybind11::handle layout,
      std::vector<int64_t> sizes);

  /// An int within a dimension's bounds.
  void add_int(std::string name, int64_t dimension);

  /// A value that export took as a constant; callers must give the same.
  void add_value(std::string name, pybind11::object expected);

  /// Assertions over sizes, as builtins.
  void add_guards(const pybind11::list& code);

  /// The checked values. None stands for constants: nothing reads them.
  /// GIL: held.
  Values check(const pybind11::sequence& flat) const;

 private:
  struct Leaf {
    std::string name;
    std::optional<TensorSpec> tensor;
    std::optional<int64_t> dimension;
    pybind11::object expected;
  };

  void check_dimension(int64_t dimension) const;
  static c10::IValue check_leaf(
      const Leaf& leaf, pybind11::handle value, Sizes& sizes);

  std::vector<Dimension> dimensions_;
  std::vector<Leaf> leaves_;
  Program guards_;
};

} // namespace torchgil::forward
