// csrc/torch/ops/latch.cpp: see latch.h.
#include "ops/latch.h"

#include <c10/util/Exception.h>

#include <chrono>
#include <cmath>

#include "ops/witness.h"

namespace torchgil {

void Latch::open() {
  {
    std::lock_guard lock(mutex_);
    open_ = true;
  }
  opened_.notify_all();
}

bool Latch::is_open() const {
  std::lock_guard lock(mutex_);
  return open_;
}

bool Latch::wait(double timeout) const {
  TORCH_CHECK_VALUE(
      std::isfinite(timeout) && timeout >= 0 && timeout <= 1e9,
      "wait: timeout must be finite and in [0, 1e9] seconds, got ",
      timeout);
  KernelRegion region("wait");
  std::unique_lock lock(mutex_);
  return opened_.wait_for(
      lock, std::chrono::duration<double>(timeout), [this] { return open_; });
}

} // namespace torchgil
