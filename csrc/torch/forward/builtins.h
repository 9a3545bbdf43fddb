// csrc/torch/forward/builtins.h: arithmetic over sizes and numbers, as Python
// means it.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

#include <initializer_list>
#include <string_view>

namespace torchgil::forward {

/// What a builtin is given; to read what is not there throws.
class Args {
 public:
  explicit Args(c10::ArrayRef<c10::IValue> values) : values_(values) {}
  /// For the one expression that the list stands in.
  Args(std::initializer_list<c10::IValue> values) : values_(values) {}

  const c10::IValue& operator[](size_t index) const {
    return values_.at(index);
  }
  size_t size() const {
    return values_.size();
  }
  const c10::IValue* begin() const {
    return &(*this)[0];
  }
  const c10::IValue* end() const {
    return values_.end();
  }

 private:
  c10::ArrayRef<c10::IValue> values_;
};

/// Computes one value of others; throws what a user can read.
using Builtin = c10::IValue (*)(Args args);

/// The builtin of that name, or nullptr.
Builtin find_builtin(std::string_view name);

} // namespace torchgil::forward
