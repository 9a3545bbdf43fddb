// csrc/torch/ops/timed.cpp: ops of a chosen length: one that works, one that
// waits.
#include <c10/util/Exception.h>

#include <chrono>
#include <cmath>
#include <thread>

#include "clock.h"
#include "ops/kernels.h"
#include "ops/witness.h"

namespace torchgil::kernels {
namespace {

// A longer time overflows the clock's 64-bit nanoseconds.
constexpr double kMaxSeconds = 1e9;

Clock::time_point deadline(const char* op, double seconds) {
  TORCH_CHECK_VALUE(
      std::isfinite(seconds) && seconds >= 0 && seconds <= kMaxSeconds,
      op,
      ": seconds must be finite and in [0, 1e9], got ",
      seconds);
  return Clock::now() +
      std::chrono::duration_cast<Clock::duration>(
             std::chrono::duration<double>(seconds));
}

} // namespace

int64_t spin(double seconds) {
  KernelRegion region("spin");
  const auto end = deadline("spin", seconds);
  // xorshift in a register: no memory, no floating point, nothing the compiler
  // can take out, because the state decides the return value's last bit.
  uint64_t state = 88172645463325252u;
  int64_t rounds = 0;
  while (Clock::now() < end) {
    // About 200 ns a batch: the clock is read seldom, the end met to the us.
    for (int i = 0; i < 128; ++i) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
    }
    rounds += 128 + static_cast<int64_t>(state == 0); // the state is never 0
  }
  return rounds;
}

void sleep(double seconds) {
  KernelRegion region("sleep");
  std::this_thread::sleep_until(deadline("sleep", seconds));
}

} // namespace torchgil::kernels
