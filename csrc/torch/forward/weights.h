// csrc/torch/forward/weights.h: the weights of a program, as they are at each
// call.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

namespace torchgil::forward {

/// What the memory of some tensors belongs to.
class Memory {
 public:
  void add(const at::Tensor& tensor);

  /// Whether a tensor shares memory with one of them.
  bool overlaps(const at::Tensor& tensor) const;

 private:
  std::unordered_set<const void*> parts_;
};

/// Tensors whose values may change from call to call, and nothing else. A
/// weight may be given other memory (`p.data = ...`), and what it had may be an
/// intermediate's then: so nothing is kept of where it was.
class Weights {
 public:
  /// Returns its number.
  uint32_t add(std::string name, at::Tensor weight);

  /// Throws an error that names the weight and says to build again, where one
  /// is not as it was when it was added. GIL: not needed.
  void check() const;

  void add_memory(Memory& memory) const;

 private:
  struct Weight {
    std::string name;
    at::Tensor tensor;
    at::ScalarType dtype;
    c10::Device device;
    c10::Layout layout;
    at::DimVector sizes;
  };
  std::vector<Weight> weights_;
};

} // namespace torchgil::forward
