// csrc/torch/forward/session.h: a program with a state of its own.
#pragma once

#include "graph.h"
#include "state.h"
#include "turn.h"

#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace torchgil::forward {

/// One user's calls of a program that writes to its state. The program and its
/// weights are the graph's, which the binding keeps; the state is the
/// session's. Each function takes the session's turn (turn.h) and throws an
/// error that names both threads where another one has it.
class Session {
 public:
  /// With the graph's first values, or another session's as they are now.
  /// GIL: held on entry, released while they are copied.
  Session(const Graph& graph, Session* source);

  /// GIL: held on entry, released once while the graph runs.
  pybind11::list run(const pybind11::sequence& flat);

  /// GIL: held on entry, released while the first values are copied.
  void reset();

  /// Gives the memory back. Any number of times.
  void close();

  /// Aliases of the tensors: their values are the session's, their sizes and
  /// strides the caller's to change.
  std::vector<at::Tensor> tensors();

  /// Copies values into tensors, by their numbers. GIL: held on entry, released
  /// while they are copied.
  void write(const std::vector<std::pair<uint32_t, at::Tensor>>& values);

  /// Copies of the blocks, to be pickled; and their values taken over.
  std::vector<at::Tensor> save();
  void load(const std::vector<at::Tensor>& blocks);

  /// In the child of a fork: a call of another thread was cut off.
  void after_fork();

 private:
  class InTurn;

  enum class Condition : uint8_t { // from good to bad
    kReady,
    kCutOff, // by a fork: its values are those of the middle of a call
    kClosed,
  };

  const Graph& graph_;
  Turn turn_;
  // Below: whose turn it is.
  Condition condition_ = Condition::kReady;
  std::optional<State> state_; // none when it is closed
};

} // namespace torchgil::forward
