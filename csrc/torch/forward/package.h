// csrc/torch/forward/package.h: an AOTInductor package, run without the GIL.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <string>
#include <vector>

namespace torchgil::forward {

/// Some models over one copy of the constants: as many calls as there are
/// models run at once, further callers wait for one.
class Package {
 public:
  /// Loads the package, an archive or, since torch 2.13, a folder that it was
  /// unpacked to; its code becomes part of the process. GIL: not needed.
  Package(const std::string& path, const std::string& model, size_t runners);

  /// Compiled code takes its inputs' strides for granted: they are copied where
  /// they have others than when exported.
  void set_formats(std::vector<c10::MemoryFormat> formats);

  /// GIL: not needed. The caller keeps the inputs until it holds it again.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);

  /// The structure of the arguments, and of the results, as pytree dumps it.
  std::vector<std::string> call_spec();

  /// Whether its weights came with it; without them a call would crash.
  bool complete();

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
  std::vector<c10::MemoryFormat> formats_; // empty: not known
};

} // namespace torchgil::forward
