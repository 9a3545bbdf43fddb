// csrc/torch/forward/constants.h: Python values as the dispatcher wants them.
#pragma once

#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>
#include <torch/csrc/utils/pybind.h>

namespace torchgil::forward {

/// Converts a Python value by the type an operator's schema gives it. Throws
/// a TypeError that says what came where it does not fit.
/// GIL: held.
c10::IValue to_ivalue(pybind11::handle value, const c10::TypePtr& type);

/// Converts a Python number, bool, string, None, or a list of them by its own
/// type, for builtins.
/// GIL: held.
c10::IValue to_ivalue(pybind11::handle value);

/// A Python int; throws an OverflowError that says which where it takes more
/// than 64 bits.
/// GIL: held.
int64_t to_int64(pybind11::handle value);

/// Converts a result to Python.
/// GIL: held.
pybind11::object to_python(const c10::IValue& value);

} // namespace torchgil::forward
