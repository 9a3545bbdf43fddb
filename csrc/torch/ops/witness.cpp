// csrc/torch/ops/witness.cpp: the recording behind KernelRegion.
#include "ops/witness.h"

#include "clock.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <mutex>
#include <utility>

namespace torchgil {
namespace {

// A lock and a growing vector are fine here: the witness is for tests and
// demonstrations, and off everywhere else.
std::mutex mutex;
std::vector<KernelRecord> records;
std::atomic<bool (*)()> gil_check{nullptr};

} // namespace

void KernelRegion::install_gil_check(bool (*gil_held)()) {
  gil_check = gil_held;
}

bool KernelRegion::start() {
  std::lock_guard lock(mutex);
  if (watched_) {
    return false;
  }
  records.clear();
  watched_ = true;
  return true;
}

std::vector<KernelRecord> KernelRegion::stop() {
  std::lock_guard lock(mutex);
  watched_ = false;
  return std::exchange(records, {});
}

void KernelRegion::begin(const char* op) {
  const auto check = gil_check.load();
  record_ = {
      op,
      check != nullptr && check(),
      now_ns(),
      0,
      static_cast<int64_t>(::syscall(SYS_gettid))};
}

void KernelRegion::end() {
  record_.end_ns = now_ns();
  std::lock_guard lock(mutex);
  if (watched_) { // a kernel that outlives the recording is not part of it
    records.push_back(record_);
  }
}

} // namespace torchgil
