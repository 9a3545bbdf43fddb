// csrc/ops/number.h: a Python number as an argument of an op.
//
// torch's own pybind11 caster for at::Scalar only works towards Python.
#pragma once

#include <c10/core/Scalar.h>
#include <pybind11/pybind11.h>

#include <complex>

namespace torchgil {
struct Number {
  at::Scalar value;
};
} // namespace torchgil

namespace pybind11::detail {

template <>
struct type_caster<torchgil::Number> {
  PYBIND11_TYPE_CASTER(torchgil::Number, const_name("complex"));

  // GIL: held.
  bool load(handle source, bool /*convert*/) {
    PyObject* const object = source.ptr();
    if (PyFloat_Check(object)) {
      value.value = PyFloat_AS_DOUBLE(object);
    } else if (PyBool_Check(object)) {
      value.value = object == Py_True;
    } else if (PyComplex_Check(object)) {
      value.value = c10::complex<double>(
          PyComplex_RealAsDouble(object), PyComplex_ImagAsDouble(object));
    } else if (PyIndex_Check(object)) { // int, numpy's integers
      const auto index =
          reinterpret_steal<pybind11::object>(PyNumber_Index(object));
      const long long integer = index ? PyLong_AsLongLong(index.ptr()) : -1;
      if (PyErr_Occurred() != nullptr) {
        throw error_already_set(); // OverflowError: more than 64 bits
      }
      value.value = static_cast<int64_t>(integer);
    } else if (PyNumber_Check(object) != 0) { // what has __float__
      const double number = PyFloat_AsDouble(object);
      if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        return false;
      }
      value.value = number;
    } else {
      return false;
    }
    return true;
  }

  static handle cast(
      const torchgil::Number& number, return_value_policy, handle) {
    // Only default values are shown, and those are integers.
    return PyLong_FromLongLong(number.value.toLong());
  }
};

} // namespace pybind11::detail
