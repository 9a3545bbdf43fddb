// csrc/forward/builtins.h: arithmetic over sizes and numbers, as Python means
// it.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

#include <string_view>

namespace torchgil {

/// What a builtin is given; an index that is too large throws.
struct Args : c10::ArrayRef<c10::IValue> {
  using ArrayRef::ArrayRef;
  const c10::IValue& operator[](size_t index) const {
    return at(index);
  }
};

/// Computes one value of others; throws what a user can read.
using Builtin = c10::IValue (*)(Args args);

/// The builtin of that name, or nullptr.
Builtin find_builtin(std::string_view name);

} // namespace torchgil
