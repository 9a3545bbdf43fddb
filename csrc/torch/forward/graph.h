// csrc/torch/forward/graph.h: an exported graph with the checks of its
// arguments.
#pragma once

#include "arguments.h"
#include "numbers.h"
#include "program.h"
#include "state.h"

#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace torchgil::forward {

/// Raises what Python's own arithmetic does. GIL: held.
void set_python_error(const NumberError& error);

/// Python fills it once, before the first call; after that it never changes.
class Graph : public Arguments {
 public:
  uint32_t add_weight(std::string name, const at::Tensor& weight) {
    return program_.add_weight(std::move(name), weight);
  }

  void add_state(
      std::string name,
      uint32_t block,
      int64_t offset,
      pybind11::handle dtype,
      std::vector<int64_t> sizes,
      std::vector<int64_t> strides,
      bool requires_grad);

  void set_code(const pybind11::list& code);
  void set_outputs(const pybind11::list& encoded);
  void set_new_state(std::vector<uint32_t> new_state) {
    program_.set_new_state(std::move(new_state));
  }

  /// A call of a program without state.
  /// GIL: held on entry, released once while the graph runs.
  pybind11::list run(const pybind11::sequence& flat) const;

  /// The same of checked arguments, with the state that the program writes to.
  pybind11::list run(
      const Values& inputs, c10::ArrayRef<c10::IValue> state) const;

  StateLayout layout;
  bool gil_priority = false;

 private:
  Program program_;
};

} // namespace torchgil::forward
