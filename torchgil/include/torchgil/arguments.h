// torchgil/arguments.h: what a Python argument of an op becomes.
//
// Two things pybind11's casters, torch's included, do not do: a Python number
// as at::Scalar, and noticing a tensor whose class (or a mode) wants to see the
// call through __torch_function__ before it goes to C++.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>
#include <c10/macros/Macros.h>
#include <torch/csrc/Export.h>
#include <torch/csrc/utils/pybind.h>

// torch.Tensor and torch.nn.Parameter, as torch/csrc/autograd/python_variable.h
// declares them; to include that doubles the time an op takes to compile.
TORCH_PYTHON_API extern PyObject* THPVariableClass;
TORCH_PYTHON_API extern PyObject* ParameterClass;

#pragma GCC visibility push(hidden)

namespace torchgil {

/// A tensor, and whether the call belongs to Python first.
struct TensorArgument {
  at::Tensor value;
  pybind11::handle source; // borrowed from the call's arguments
  bool overloaded = false;
};

/// A Python number, or a tensor that is one.
struct ScalarArgument {
  at::Scalar value;
  pybind11::handle source; // likewise
};

/// The argument type that stands in Python for a C++ parameter T.
template <class T>
struct ArgumentOf {
  using type = T; // what pybind11 converts by itself
};
template <>
struct ArgumentOf<const at::Tensor&> {
  using type = TensorArgument;
};
template <>
struct ArgumentOf<const at::Scalar&> {
  using type = ScalarArgument;
};

/// Whether the tensor's class has a __torch_function__ of its own. GIL: held.
inline bool class_has_torch_function(PyObject* tensor) {
  PyObject* const own_class = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  if (C10_LIKELY(
          own_class == THPVariableClass || own_class == ParameterClass)) {
    return false;
  }
  if (at::impl::PythonTorchFunctionTLS::get_disabled_state() !=
      at::impl::TorchFunctionDisabledState::ENABLED) {
    return false;
  }
  namespace py = pybind11;
  const py::object disabled =
      py::module_::import("torch._C").attr("_disabled_torch_function_impl");
  const py::object own = py::type::handle_of(tensor).attr("__torch_function__");
  return !own.is(disabled);
}

/// Whether __torch_function__, of a mode or of the tensor's class, wants to
/// see the call. For a plain tensor: one thread-local load. GIL: held.
inline bool has_torch_function(PyObject* tensor) {
  return C10_UNLIKELY(at::impl::torch_function_mode_enabled()) ||
      class_has_torch_function(tensor);
}

inline const at::Tensor& unwrap(const TensorArgument& argument) {
  return argument.value;
}
inline const at::Scalar& unwrap(const ScalarArgument& argument) {
  return argument.value;
}
template <class T>
const T& unwrap(const T& argument) {
  return argument;
}

inline bool is_overloaded(const TensorArgument& argument) {
  return argument.overloaded;
}
template <class T>
bool is_overloaded(const T& /*never a tensor*/) {
  return false;
}

/// The Python object that an argument was, or is made into. GIL: held.
inline pybind11::object to_source(const TensorArgument& argument) {
  return pybind11::reinterpret_borrow<pybind11::object>(argument.source);
}
inline pybind11::object to_source(const ScalarArgument& argument) {
  return pybind11::reinterpret_borrow<pybind11::object>(argument.source);
}
template <class T>
pybind11::object to_source(const T& argument) {
  return pybind11::cast(argument);
}

} // namespace torchgil

namespace pybind11::detail {

template <>
struct type_caster<torchgil::TensorArgument> {
  PYBIND11_TYPE_CASTER(torchgil::TensorArgument, const_name("torch.Tensor"));

  // GIL: held.
  bool load(handle source, bool /*convert*/) {
    make_caster<at::Tensor> tensor;
    if (!tensor.load(source, false)) {
      return false;
    }
    value.value = cast_op<at::Tensor&&>(std::move(tensor));
    value.source = source;
    value.overloaded = torchgil::has_torch_function(source.ptr());
    return true;
  }
};

template <>
struct type_caster<torchgil::ScalarArgument> {
  PYBIND11_TYPE_CASTER(torchgil::ScalarArgument, const_name("complex"));

  // GIL: held.
  bool load(handle source, bool /*convert*/) {
    PyObject* const object = source.ptr();
    value.source = source;
    if (PyFloat_Check(object)) {
      value.value = PyFloat_AS_DOUBLE(object);
    } else if (PyBool_Check(object)) {
      value.value = object == Py_True;
    } else if (PyComplex_Check(object)) {
      value.value = c10::complex<double>(
          PyComplex_RealAsDouble(object), PyComplex_ImagAsDouble(object));
    } else if (
        make_caster<at::Tensor> caster; // an int is none, and slow to be asked
        !PyLong_Check(object) && caster.load(source, false)) {
      const at::Tensor& tensor = caster; // whatever torch.add takes as one
      if (tensor.dim() != 0 || tensor.requires_grad()) {
        return false; // several numbers, or a gradient that would be lost
      }
      value.value = tensor.item();
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

  // pybind11 turns a default value into a Python object when it binds it.
  static handle cast(
      const torchgil::ScalarArgument& number, return_value_policy, handle) {
    return PyLong_FromLongLong(number.value.toLong());
  }
};

} // namespace pybind11::detail

#pragma GCC visibility pop
