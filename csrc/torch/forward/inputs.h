// csrc/torch/forward/inputs.h: what export assumed about the arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <string>
#include <vector>

namespace torchgil::forward {

/// A size that may change from call to call, within bounds.
struct Dimension {
  std::string name;
  int64_t low;
  int64_t high;
};

/// What the tensors of one call must be.
struct TensorSpec {
  std::string name; // of the argument, as the user wrote it
  at::ScalarType dtype;
  c10::Device device;
  c10::Layout layout;
  std::vector<int64_t> sizes; // -1 - d stands for dimension d
};

/// The sizes one call has given to the dimensions; the first one binds.
class Sizes {
 public:
  explicit Sizes(const std::vector<Dimension>& dimensions)
      : dimensions_(dimensions), bound_(dimensions.size()) {}

  /// Throws a ValueError that names the argument, what was exported and what
  /// came, if the tensor is not what the spec says.
  void check(const TensorSpec& spec, const at::Tensor& tensor);

  /// The same for an int argument.
  void check(const std::string& name, int64_t dimension, int64_t value);

 private:
  struct Bound {
    int64_t value = -1;
    const std::string* by = nullptr;
  };
  /// Binds or compares; returns what is wrong, or an empty string.
  std::string bind(const std::string& name, int64_t dimension, int64_t value);
  std::string exported(const TensorSpec& spec) const;

  const std::vector<Dimension>& dimensions_;
  c10::SmallVector<Bound, 8> bound_;
};

} // namespace torchgil::forward
