// csrc/torch/forward/package.cpp: an AOTInductor package, run without the GIL.
#include "package.h"

#include "wrappers.h"

#include <c10/core/DispatchKeySet.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <utility>

namespace torchgil::forward {
namespace {

/// Compiled code reads memory: one element after the other, no sign or
/// conjugation that is still to be done.
at::Tensor with_memory(const at::Tensor& tensor, size_t place) {
  if (!has_memory(tensor)) {
    C10_THROW_ERROR(
        TypeError,
        "load_package: tensor " + std::to_string(place) +
            " has no memory that compiled code could read (it is a subclass, "
            "fake, nested, freed, or inside a transform such as vmap); pass a "
            "plain torch.Tensor");
  }
  return tensor.resolve_conj().resolve_neg();
}

} // namespace

// run_single_threaded stays off: it takes the lock away that keeps two calls
// out of one model, and allows one runner only.
Package::Package(
    const std::string& path, const std::string& model, size_t runners)
    : loader_(path, model, /*run_single_threaded=*/false, runners) {}

std::vector<at::Tensor> Package::run(const std::vector<at::Tensor>& inputs) {
  const c10::InferenceMode inference_mode;
  // Of the operators that compiled code calls it reads the results as it was
  // compiled to, whatever is around the call.
  const c10::impl::ExcludeDispatchKeyGuard alone(
      kWrappers | c10::autocast_dispatch_keyset);
  std::vector<at::Tensor> dense;
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto tensor = with_memory(inputs[i], i);
    // itself, if it is so already
    dense.push_back(
        i < formats_.size() ? tensor.contiguous(formats_[i])
                            : std::move(tensor));
  }
  return loader_.run(dense);
}

void Package::set_formats(std::vector<c10::MemoryFormat> formats) {
  formats_ = std::move(formats);
}

std::vector<std::string> Package::call_spec() {
  return loader_.get_call_spec();
}

bool Package::complete() {
  const auto* runner = loader_.get_runner();
  return runner->getConstantNamesToOriginalFQNs().empty() ||
      !runner->extract_constants_map(/*use_inactive=*/false).empty();
}

} // namespace torchgil::forward
