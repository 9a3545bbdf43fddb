// csrc/torch/ops/witness.h: records, inside a kernel, whether the GIL was held.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace torchgil {

/// One run of a kernel, as the kernel itself saw it.
struct KernelRecord {
  const char* op;   // a string literal
  bool held_gil;    // on entry
  int64_t begin_ns; // CLOCK_MONOTONIC
  int64_t end_ns;
  int64_t thread_id; // the operating system's
};

/// Stands first in each kernel. Costs one relaxed load while nobody watches.
class KernelRegion {
 public:
  explicit KernelRegion(const char* op) {
    if (watched_.load(std::memory_order_relaxed)) [[unlikely]] {
      begin(op);
    }
  }
  ~KernelRegion() {
    if (record_.op != nullptr) [[unlikely]] {
      end();
    }
  }
  KernelRegion(const KernelRegion&) = delete;
  KernelRegion& operator=(const KernelRegion&) = delete;
  KernelRegion(KernelRegion&&) = delete;
  KernelRegion& operator=(KernelRegion&&) = delete;

  /// How a kernel asks whether its thread holds the GIL without knowing
  /// Python: the bindings install CPython's answer once.
  static void install_gil_check(bool (*gil_held)());
  /// Starts recording; false if a recording is running already.
  static bool start();
  /// Ends it and returns what was recorded, in the order of the kernels' ends.
  static std::vector<KernelRecord> stop();

 private:
  void begin(const char* op);
  void end();

  inline static std::atomic<bool> watched_{false};
  KernelRecord record_{};
};

} // namespace torchgil
