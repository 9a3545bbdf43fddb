// csrc/torch/forward/state.h: the tensors that a program writes to.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace torchgil::forward {

/// How a program's state lies in memory, and what it is at first. Tensors that
/// share memory in the model lie in one block. Filled once, before the first
/// State is made of it.
class StateLayout {
 public:
  /// Adds a block with its first bytes, which are kept and never written.
  /// Returns its number.
  uint32_t add_block(at::Tensor bytes);

  /// Adds a tensor that begins `offset` bytes into a block. Refuses one that
  /// is not all inside it.
  void add_tensor(
      std::string name,
      uint32_t block,
      int64_t offset,
      at::ScalarType dtype,
      std::vector<int64_t> sizes,
      std::vector<int64_t> strides,
      bool requires_grad);

  bool empty() const {
    return tensors_.empty();
  }

  /// The names, to tell a user.
  std::string names() const;

  const std::vector<at::Tensor>& first_blocks() const {
    return first_;
  }

 private:
  friend class State;

  struct Member {
    std::string name;
    uint32_t block;
    int64_t offset; // in elements
    at::ScalarType dtype;
    at::DimVector sizes;
    at::DimVector strides;
    bool requires_grad;
  };
  std::vector<at::Tensor> first_;
  std::vector<Member> tensors_;
};

/// One session's own memory and the tensors in it. GIL: not needed. Python is
/// given aliases of these tensors; only an operator whose kernel is Python has
/// the tensors themselves, while it runs.
class State {
 public:
  /// Copies the blocks: the layout's first ones, or another state's.
  State(const StateLayout& layout, const std::vector<at::Tensor>& blocks);

  /// Copies the bytes of other blocks of the same layout.
  void assign(const std::vector<at::Tensor>& blocks);

  /// Copies values into tensors, by their numbers. All are read before the
  /// first is written: some may be the state's own.
  void write(const std::vector<std::pair<uint32_t, at::Tensor>>& values);

  /// The tensors, in the order in which they were added to the layout.
  c10::ArrayRef<c10::IValue> values() const {
    return values_;
  }

  const std::vector<at::Tensor>& blocks() const {
    return blocks_;
  }

 private:
  bool owns(const at::Tensor& tensor) const;

  std::vector<at::Tensor> blocks_;
  std::vector<c10::IValue> values_;
};

} // namespace torchgil::forward
