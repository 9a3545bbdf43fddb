// csrc/torch/forward/state.cpp: the tensors that a program writes to.
#include "state.h"

#include "wrappers.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>
#include <utility>

namespace torchgil::forward {
namespace {

/// Memory that a user, too, may write to in place, outside of inference mode;
/// and tensors that have memory, whatever modes and transforms are around.
class NormalTensors {
  c10::InferenceMode normal_{false};
  at::NoGradGuard no_grad_;
  c10::impl::ExcludeDispatchKeyGuard alone_{kWrappers};
};

/// How many elements lie between a tensor's first and the end of its last.
int64_t extent(at::IntArrayRef sizes, at::IntArrayRef strides) {
  int64_t last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    TORCH_CHECK_VALUE(
        sizes[i] >= 0 && strides[i] >= 0, "a size or stride is less than 0");
    if (sizes[i] == 0) {
      return 0;
    }
    int64_t step = 0;
    TORCH_CHECK_VALUE(
        !__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) &&
            !__builtin_add_overflow(last, step, &last),
        "its sizes and strides are too large");
  }
  return last + 1;
}

} // namespace

uint32_t StateLayout::add_block(at::Tensor bytes) {
  TORCH_CHECK_VALUE(
      bytes.scalar_type() == at::kByte && bytes.dim() == 1 &&
          bytes.is_contiguous(),
      "a block is bytes");
  first_.push_back(std::move(bytes));
  return first_.size() - 1;
}

void StateLayout::add_tensor(
    std::string name,
    uint32_t block,
    int64_t offset,
    at::ScalarType dtype,
    std::vector<int64_t> sizes,
    std::vector<int64_t> strides,
    bool requires_grad) {
  TORCH_CHECK_VALUE(block < first_.size(), "no block ", block);
  TORCH_CHECK_VALUE(sizes.size() == strides.size(), "as many strides as sizes");
  const auto bytes = first_[block].numel();
  const auto itemsize = static_cast<int64_t>(c10::elementSize(dtype));
  // In elements and from the rest of the block, so that nothing overflows.
  const bool inside = offset >= 0 && offset <= bytes &&
      offset % itemsize == 0 &&
      extent(sizes, strides) <= (bytes - offset) / itemsize;
  TORCH_CHECK_VALUE(inside, "'", name, "' is not inside its block");
  tensors_.push_back(
      {std::move(name),
       block,
       offset / itemsize,
       dtype,
       at::DimVector(sizes),
       at::DimVector(strides),
       requires_grad});
}

std::string StateLayout::names() const {
  constexpr size_t kShown = 3;
  std::ostringstream text;
  for (size_t i = 0; i < tensors_.size() && i < kShown; ++i) {
    text << (i == 0 ? "'" : ", '") << tensors_[i].name << '\'';
  }
  if (tensors_.size() > kShown) {
    text << " and " << tensors_.size() - kShown << " others";
  }
  return text.str();
}

State::State(const StateLayout& layout, const std::vector<at::Tensor>& blocks) {
  const NormalTensors guard;
  for (const auto& block : blocks) {
    blocks_.push_back(block.clone());
  }
  for (const auto& member : layout.tensors_) {
    const auto& block = blocks_[member.block];
    auto tensor = at::empty({0}, block.options().dtype(member.dtype));
    tensor.set_(block.storage(), member.offset, member.sizes, member.strides);
    // Some operators take another kernel for what requires grad.
    tensor.set_requires_grad(member.requires_grad);
    values_.emplace_back(std::move(tensor));
  }
}

void State::assign(const std::vector<at::Tensor>& blocks) {
  TORCH_CHECK_VALUE(blocks.size() == blocks_.size(), "other blocks");
  for (size_t i = 0; i < blocks_.size(); ++i) {
    TORCH_CHECK_VALUE(
        blocks[i].dtype() == at::kByte &&
            blocks[i].sizes() == blocks_[i].sizes(),
        "a block of another size");
  }
  const NormalTensors guard;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].copy_(blocks[i]);
  }
}

void State::write(const std::vector<std::pair<uint32_t, at::Tensor>>& values) {
  const NormalTensors guard;
  std::vector<at::Tensor> sources;
  for (const auto& [number, value] : values) {
    TORCH_CHECK_VALUE(number < values_.size(), "no tensor ", number);
    TORCH_CHECK_TYPE(
        has_memory(value),
        "nogil: what was assigned to a session's state has no memory of its "
        "own (it is a subclass, fake, sparse, nested, freed, on the device "
        "meta, or inside a transform such as vmap); assign a plain "
        "torch.Tensor");
    sources.push_back(owns(value) ? value.clone() : value);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    auto target = values_[values[i].first].toTensor();
    for (int64_t d = 0; d < target.dim(); ++d) {
      if (target.stride(d) == 0 && target.size(d) > 1) { // expanded
        target = target.narrow(d, 0, 1);
        sources[i] = sources[i].narrow(d, 0, 1);
      }
    }
    target.copy_(sources[i]);
  }
}

bool State::owns(const at::Tensor& tensor) const {
  return tensor.has_storage() &&
      std::any_of(blocks_.begin(), blocks_.end(), [&](const auto& block) {
           return block.storage().is_alias_of(tensor.storage());
         });
}

} // namespace torchgil::forward
