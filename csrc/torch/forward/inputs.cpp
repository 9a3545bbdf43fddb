// csrc/torch/forward/inputs.cpp: what export assumed about the arguments.
#include "inputs.h"

#include <c10/util/Exception.h>

#include <limits>
#include <sstream>

namespace torchgil::forward {
namespace {

// as Python has it: float32, not Float
std::string dtype_name(at::ScalarType dtype) {
  return std::string(c10::getDtypeNames(dtype).first);
}

std::string described(const at::Tensor& tensor) {
  std::ostringstream out;
  out << dtype_name(tensor.scalar_type()) << tensor.sizes() << " on "
      << tensor.device();
  return out.str();
}

} // namespace

std::string Sizes::exported(const TensorSpec& spec) const {
  std::ostringstream out;
  out << dtype_name(spec.dtype) << '[';
  for (size_t i = 0; i < spec.sizes.size(); ++i) {
    const auto size = spec.sizes[i];
    out << (i == 0 ? "" : ", ");
    if (size >= 0) {
      out << size;
    } else {
      out << dimensions_[-1 - size].name;
    }
  }
  out << "] on " << spec.device;
  return out.str();
}

std::string Sizes::bind(
    const std::string& name, int64_t dimension, int64_t value) {
  auto& bound = bound_[dimension];
  const auto& [label, low, high] = dimensions_[dimension];
  std::ostringstream wrong;
  if (value < low || value > high) {
    const bool from = low != std::numeric_limits<int64_t>::min();
    wrong << label << " must be ";
    if (from) {
      wrong << "at least " << low;
    }
    if (high != std::numeric_limits<int64_t>::max()) {
      wrong << (from ? " and at most " : "at most ") << high;
    }
    wrong << ", not " << value;
  } else if (bound.by == nullptr) {
    bound = {value, &name};
  } else if (bound.value != value) {
    wrong << label << " is " << bound.value << " in '" << *bound.by << "', but "
          << value << " here";
  }
  return wrong.str();
}

void Sizes::check(const TensorSpec& spec, const at::Tensor& tensor) {
  std::string wrong;
  if (tensor.key_set().has(c10::DispatchKey::Python)) {
    C10_THROW_ERROR(
        TypeError,
        "nogil: argument '" + spec.name +
            "' is a tensor subclass or fake tensor, whose ops run in Python; "
            "pass a plain torch.Tensor");
  }
  // Under inference mode nothing is recorded: the derivative would be zero.
  if (tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper) ||
      tensor._fw_grad(0).defined()) {
    C10_THROW_ERROR(
        TypeError,
        "nogil: argument '" + spec.name +
            "' is being differentiated (torch.func, or forward-mode AD), and "
            "a nogil forward is for inference; call the model itself");
  }
  if (tensor.key_set().has(c10::DispatchKey::NestedTensor)) { // has no sizes
    C10_THROW_ERROR(
        TypeError,
        "nogil: argument '" + spec.name +
            "' is a nested tensor; pass a plain torch.Tensor");
  }
  const auto sizes = tensor.sizes();
  if (tensor.scalar_type() != spec.dtype) {
    wrong = "its dtype differs";
  } else if (tensor.device() != spec.device) {
    wrong = "its device differs";
  } else if (tensor.layout() != spec.layout) {
    wrong = "its layout differs";
  } else if (sizes.size() != spec.sizes.size()) {
    wrong = "its number of dimensions differs";
  }
  for (size_t i = 0; wrong.empty() && i < sizes.size(); ++i) {
    const auto expected = spec.sizes[i];
    if (expected < 0) {
      wrong = bind(spec.name, -1 - expected, sizes[i]);
    } else if (expected != sizes[i]) {
      wrong = "dimension " + std::to_string(i) + " must be " +
          std::to_string(expected) + ", not " + std::to_string(sizes[i]);
    }
  }
  if (!wrong.empty()) {
    C10_THROW_ERROR(
        ValueError,
        "nogil: argument '" + spec.name + "' was exported as " +
            exported(spec) + ", got " + described(tensor) + ": " + wrong);
  }
}

void Sizes::check(const std::string& name, int64_t dimension, int64_t value) {
  const auto wrong = bind(name, dimension, value);
  if (!wrong.empty()) {
    C10_THROW_ERROR(
        ValueError, "nogil: argument '" + name + "', " + "an int: " + wrong);
  }
}

} // namespace torchgil::forward
