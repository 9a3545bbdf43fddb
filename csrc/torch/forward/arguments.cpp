// csrc/torch/forward/arguments.cpp: checks the leaves of a call's arguments.
#include "arguments.h"

#include "constants.h"
#include "decode.h"

#include <torchgil/arguments.h>

#include <cstring>
#include <limits>
#include <utility>

namespace torchgil::forward {
namespace {

namespace py = pybind11;
using c10::IValue;

/// Exact, so that neither True passes for 1 nor 0.0 for -0.0, and NaN is NaN.
bool same_constant(py::handle a, py::handle b) {
  if (a.is(b)) {
    return true;
  }
  if (Py_TYPE(a.ptr()) != Py_TYPE(b.ptr())) {
    return false;
  }
  if (PyFloat_Check(a.ptr())) {
    const auto x = PyFloat_AS_DOUBLE(a.ptr());
    const auto y = PyFloat_AS_DOUBLE(b.ptr());
    return (x != x && y != y) || std::memcmp(&x, &y, sizeof(x)) == 0;
  }
  return a.equal(b);
}

std::string exported_as(const std::string& name, const std::string& what) {
  return "nogil: argument '" + name + "' was exported as " + what + ", got ";
}

} // namespace

int64_t Arguments::add_dimension(
    std::string name, int64_t low, py::object high) {
  dimensions_.push_back(
      {std::move(name),
       low,
       high.is_none() ? std::numeric_limits<int64_t>::max()
                      : high.cast<int64_t>()});
  return static_cast<int64_t>(dimensions_.size()) - 1;
}

/// That a dimension is there, where it is one: a number is below 0.
void Arguments::check_dimension(int64_t dimension) const {
  TORCH_CHECK_VALUE(
      dimension < static_cast<int64_t>(dimensions_.size()),
      "no dimension ",
      dimension);
}

void Arguments::add_tensor(
    std::string name,
    py::handle dtype,
    py::handle device,
    py::handle layout,
    std::vector<int64_t> sizes) {
  for (const auto size : sizes) {
    check_dimension(-1 - size);
  }
  TensorSpec spec{
      name,
      static_cast<at::ScalarType>(
          to_ivalue(dtype, c10::ScalarTypeType::get()).toInt()),
      to_ivalue(device, c10::DeviceObjType::get()).toDevice(),
      static_cast<c10::Layout>(
          to_ivalue(layout, c10::LayoutType::get()).toInt()),
      std::move(sizes)};
  leaves_.push_back({std::move(name), std::move(spec), {}, {}});
}

void Arguments::add_int(std::string name, int64_t dimension) {
  TORCH_CHECK_VALUE(dimension >= 0, "no dimension ", dimension);
  check_dimension(dimension);
  leaves_.push_back({std::move(name), {}, dimension, {}});
}

void Arguments::add_value(std::string name, py::object expected) {
  leaves_.push_back({std::move(name), {}, {}, std::move(expected)});
}

void Arguments::add_guards(const py::list& code) {
  std::string node;
  guards_.set_code(decode_code(code, guards_, node));
}

IValue Arguments::check_leaf(const Leaf& leaf, py::handle value, Sizes& sizes) {
  const auto* type = Py_TYPE(value.ptr())->tp_name;
  if (leaf.tensor) {
    py::detail::make_caster<at::Tensor> caster;
    if (!caster.load(value, false)) {
      throw py::type_error(exported_as(leaf.name, "a tensor") + type);
    }
    // One with a __torch_function__ of its own would be passed by.
    if (class_has_torch_function(value.ptr())) {
      throw py::type_error(
          "nogil: argument '" + leaf.name + "' is a tensor subclass (" + type +
          "), whose ops run in Python; pass a plain torch.Tensor");
    }
    at::Tensor& tensor = caster;
    sizes.check(*leaf.tensor, tensor);
    return std::move(tensor);
  }
  if (leaf.dimension) {
    if (!PyLong_CheckExact(value.ptr())) { // a bool is an int, but not here
      throw py::type_error(exported_as(leaf.name, "an int") + type);
    }
    int overflow = 0;
    const int64_t number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow != 0) {
      throw py::value_error(
          exported_as(leaf.name, "an int of 64 bits") +
          py::repr(value).cast<std::string>());
    }
    sizes.check(leaf.name, *leaf.dimension, number);
    return number;
  }
  if (!same_constant(leaf.expected, value)) {
    throw py::value_error(
        exported_as(
            leaf.name,
            "the constant " + py::repr(leaf.expected).cast<std::string>()) +
        py::repr(value).cast<std::string>() + "; export once for each value");
  }
  return {};
}

Arguments::Values Arguments::check(const py::sequence& flat) const {
  const auto count = static_cast<size_t>(py::len(flat));
  if (count != leaves_.size()) {
    throw py::type_error(
        "nogil: expected " + std::to_string(leaves_.size()) + " inputs, got " +
        std::to_string(count));
  }
  Values values;
  Sizes sizes(dimensions_);
  for (size_t i = 0; i < count; ++i) {
    values.push_back(check_leaf(leaves_[i], py::object(flat[i]), sizes));
  }
  if (!guards_.empty()) {
    const Instruction* current = nullptr;
    guards_.run(values, {}, current);
  }
  return values;
}

} // namespace torchgil::forward
