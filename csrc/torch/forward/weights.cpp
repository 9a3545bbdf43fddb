// csrc/torch/forward/weights.cpp: the weights of a program, as they are at each
// call.
#include "weights.h"

#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>
#include <utility>

namespace torchgil::forward {
namespace {

/// What a tensor's memory belongs to: its storage, the tensors that a
/// sparse one is made of, or else, as of oneDNN's, itself.
void list_parts(const at::Tensor& tensor, std::vector<const void*>& parts) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  switch (tensor.layout()) {
    case at::kSparse: {
      const auto* sparse = static_cast<const at::SparseTensorImpl*>(impl);
      list_parts(sparse->indices(), parts);
      list_parts(sparse->values(), parts);
      break;
    }
    case at::kSparseCsr:
    case at::kSparseCsc:
    case at::kSparseBsr:
    case at::kSparseBsc: {
      const auto* sparse = static_cast<const at::SparseCsrTensorImpl*>(impl);
      list_parts(sparse->compressed_indices(), parts);
      list_parts(sparse->plain_indices(), parts);
      list_parts(sparse->values(), parts);
      break;
    }
    default:
      if (const auto* batched = at::functorch::maybeGetBatchedImpl(tensor)) {
        list_parts(batched->value(), parts); // inside vmap
        break;
      }
      parts.push_back(
          tensor.has_storage() ? static_cast<const void*>(
                                     tensor.storage().unsafeGetStorageImpl())
                               : impl);
  }
}

std::string described(
    at::ScalarType dtype,
    at::IntArrayRef sizes,
    c10::Device device,
    c10::Layout layout) {
  std::ostringstream text;
  text << c10::getDtypeNames(dtype).first << sizes << " on " << device;
  if (layout != at::kStrided) {
    text << " (" << layout << ')';
  }
  return text.str();
}

} // namespace

void Memory::add(const at::Tensor& tensor) {
  std::vector<const void*> parts;
  list_parts(tensor, parts);
  parts_.insert(parts.begin(), parts.end());
}

bool Memory::overlaps(const at::Tensor& tensor) const {
  std::vector<const void*> parts;
  list_parts(tensor, parts);
  return std::any_of(parts.begin(), parts.end(), [&](const void* part) {
    return parts_.count(part) != 0;
  });
}

uint32_t Weights::add(std::string name, at::Tensor weight) {
  Weight added{
      std::move(name),
      weight,
      weight.scalar_type(),
      weight.device(),
      weight.layout(),
      at::DimVector(weight.sizes())};
  weights_.push_back(std::move(added));
  return weights_.size() - 1;
}

void Weights::check() const {
  for (const auto& [name, weight, dtype, device, layout, sizes] : weights_) {
    if (weight.scalar_type() != dtype || weight.device() != device ||
        weight.layout() != layout || !weight.sizes().equals(sizes)) {
      TORCH_CHECK(
          false,
          "nogil: the weight '",
          name,
          "' was ",
          described(dtype, sizes, device, layout),
          " when this forward was built, and is ",
          described(
              weight.scalar_type(),
              weight.sizes(),
              weight.device(),
              weight.layout()),
          " now: build it again with torchgil.nogil");
    }
  }
}

void Weights::add_memory(Memory& memory) const {
  for (const auto& weight : weights_) {
    memory.add(weight.tensor);
  }
}

} // namespace torchgil::forward
