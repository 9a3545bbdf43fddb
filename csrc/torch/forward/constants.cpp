// csrc/torch/forward/constants.cpp: Python values as the dispatcher wants them,
// and back. torch's own conversion sits in a header that takes 24 s to compile.
#include "constants.h"

#include <ATen/ScalarOps.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/Exception.h>
#include <torch/csrc/Device.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/Layout.h>
#include <torch/csrc/MemoryFormat.h>

#include <string>

namespace torchgil::forward {
namespace {

namespace py = pybind11;
using c10::IValue;
using c10::TypeKind;

[[noreturn]] void refuse(py::handle value, const std::string& wanted) {
  C10_THROW_ERROR(
      TypeError,
      "nogil: expected " + wanted + ", got " +
          py::repr(value).cast<std::string>());
}

bool is_number(py::handle value) {
  return PyBool_Check(value.ptr()) || PyLong_Check(value.ptr()) ||
      PyFloat_Check(value.ptr()) || PyComplex_Check(value.ptr());
}

IValue to_number(py::handle value) {
  auto* p = value.ptr();
  if (PyBool_Check(p)) {
    return p == Py_True;
  }
  if (PyLong_Check(p)) {
    return to_int64(value);
  }
  if (PyFloat_Check(p)) {
    return PyFloat_AS_DOUBLE(p);
  }
  if (PyComplex_Check(p)) {
    const auto z = PyComplex_AsCComplex(p);
    return c10::complex<double>(z.real, z.imag);
  }
  refuse(value, "a number");
}

at::Tensor to_tensor(py::handle value) {
  py::detail::make_caster<at::Tensor> given;
  if (given.load(value, false)) {
    return py::detail::cast_op<at::Tensor&>(given);
  }
  // as torch.ops does: it takes part in type promotion as a number
  auto tensor = at::scalar_to_tensor(to_number(value).toScalar());
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

// dtypes, layouts and memory formats are ints to the dispatcher; the schema
// knows them by their own types only in part, so ask the value
IValue to_int(py::handle value) {
  auto* p = value.ptr();
  if (THPDtype_Check(p)) {
    return static_cast<int64_t>(reinterpret_cast<THPDtype*>(p)->scalar_type);
  }
  if (THPLayout_Check(p)) {
    return static_cast<int64_t>(reinterpret_cast<THPLayout*>(p)->layout);
  }
  if (THPMemoryFormat_Check(p)) {
    return static_cast<int64_t>(
        reinterpret_cast<THPMemoryFormat*>(p)->memory_format);
  }
  if (PyLong_Check(p)) { // bool too
    return to_int64(value);
  }
  refuse(value, "an int");
}

IValue to_list(py::handle value, const c10::TypePtr& element_type) {
  c10::impl::GenericList list(element_type);
  if (!PyList_Check(value.ptr()) && !PyTuple_Check(value.ptr())) {
    refuse(value, "a list of " + element_type->str());
  }
  for (const auto element : value) {
    list.push_back(to_ivalue(element, element_type));
  }
  return list;
}

} // namespace

int64_t to_int64(py::handle value) {
  int overflow = 0;
  const auto number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  if (PyErr_Occurred() != nullptr) {
    throw py::error_already_set();
  }
  if (overflow != 0) {
    const auto text = "nogil: the int " + py::repr(value).cast<std::string>() +
        " does not fit into 64 bits";
    PyErr_SetString(PyExc_OverflowError, text.c_str());
    throw py::error_already_set();
  }
  return number;
}

IValue to_ivalue(py::handle value, const c10::TypePtr& type) {
  auto* p = value.ptr();
  switch (type->kind()) {
    case TypeKind::OptionalType:
      return value.is_none()
          ? IValue()
          : to_ivalue(
                value, type->expectRef<c10::OptionalType>().getElementType());
    case TypeKind::TensorType:
      return to_tensor(value);
    case TypeKind::ListType:
      return to_list(value, type->expectRef<c10::ListType>().getElementType());
    case TypeKind::IntType:
    case TypeKind::SymIntType:
    case TypeKind::ScalarTypeType:
    case TypeKind::LayoutType:
    case TypeKind::MemoryFormatType:
      return to_int(value);
    case TypeKind::FloatType:
    case TypeKind::SymFloatType:
      if (!PyFloat_Check(p) && !PyLong_Check(p)) {
        refuse(value, "a float");
      }
      return value.cast<double>();
    case TypeKind::BoolType:
    case TypeKind::SymBoolType:
      if (!PyBool_Check(p)) {
        refuse(value, "a bool");
      }
      return p == Py_True;
    case TypeKind::NumberType:
    case TypeKind::ComplexType:
      return to_number(value);
    case TypeKind::StringType:
      if (!PyUnicode_Check(p)) {
        refuse(value, "a string");
      }
      return value.cast<std::string>();
    case TypeKind::DeviceObjType:
      if (THPDevice_Check(p)) {
        return reinterpret_cast<THPDevice*>(p)->device;
      }
      if (PyUnicode_Check(p)) {
        return c10::Device(value.cast<std::string>());
      }
      refuse(value, "a device");
    case TypeKind::GeneratorType:
      if (THPGenerator_Check(p)) {
        return reinterpret_cast<THPGenerator*>(p)->cdata;
      }
      refuse(value, "a generator");
    default:
      return to_ivalue(value);
  }
}

IValue to_ivalue(py::handle value) {
  if (value.is_none()) {
    return {};
  }
  if (is_number(value)) {
    return to_number(value);
  }
  if (PyUnicode_Check(value.ptr())) {
    return value.cast<std::string>();
  }
  if (PyList_Check(value.ptr()) || PyTuple_Check(value.ptr())) {
    return to_list(value, c10::AnyType::get());
  }
  refuse(value, "a number, a string, or a list of them");
}

py::object to_python(const IValue& value) {
  if (value.isTensor()) {
    return py::cast(value.toTensor());
  }
  if (value.isInt()) {
    return py::int_(value.toInt());
  }
  if (value.isDouble()) {
    return py::float_(value.toDouble());
  }
  if (value.isBool()) {
    return py::bool_(value.toBool());
  }
  if (value.isComplexDouble()) {
    const auto z = value.toComplexDouble();
    return py::reinterpret_steal<py::object>(
        PyComplex_FromDoubles(z.real(), z.imag()));
  }
  if (value.isNone()) {
    return py::none();
  }
  if (value.isString()) {
    return py::str(value.toStringRef());
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      value.isList(), "nogil: cannot return a ", value.tagKind());
  py::list list;
  for (const auto& element : value.toListRef()) {
    list.append(to_python(element));
  }
  return list;
}

} // namespace torchgil::forward
