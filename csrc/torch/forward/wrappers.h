// csrc/torch/forward/wrappers.h: tensors that stand for others, and those that
// have memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>

namespace torchgil::forward {

/// Of tensors that stand for others, and of the modes that make such of what
/// operators return.
inline const c10::DispatchKeySet kWrappers = c10::python_ks |
    c10::functorch_transforms_ks |
    c10::DispatchKeySet({
        c10::DispatchKey::Functionalize,
        c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
        c10::DispatchKey::FuncTorchDynamicLayerBackMode,
    });

/// Whether its elements can be read from memory. Not of a tensor that is a
/// subclass, fake, sparse, nested, freed, or inside a transform such as vmap.
inline bool has_memory(const at::Tensor& tensor) {
  return tensor.has_storage() &&
      !tensor.key_set().has_any(
          kWrappers | c10::DispatchKeySet(c10::DispatchKey::NestedTensor)) &&
      (tensor.numel() == 0 || tensor.storage().data() != nullptr);
}

} // namespace torchgil::forward
