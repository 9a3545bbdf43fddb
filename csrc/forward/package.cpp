// csrc/forward/package.cpp: an AOTInductor package, run without the GIL.
#include "package.h"

#include <c10/core/InferenceMode.h>

#include <utility>

namespace torchgil {

// run_single_threaded stays off: it takes the lock away that keeps two calls
// out of one model, and allows one runner only.
Package::Package(
    const std::string& path, const std::string& model, size_t runners)
    : loader_(path, model, /*run_single_threaded=*/false, runners) {}

std::vector<at::Tensor> Package::run(const std::vector<at::Tensor>& inputs) {
  const c10::InferenceMode inference_mode;
  auto dense = inputs;
  for (size_t i = 0; i < formats_.size(); ++i) {
    dense[i] = dense[i].contiguous(formats_[i]); // itself, if it is so already
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

} // namespace torchgil
