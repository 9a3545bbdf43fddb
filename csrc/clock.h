// csrc/clock.h: the clock that everything here is timed by.
#pragma once

#include <time.h>

#include <chrono>
#include <cstdint>

namespace torchgil {

using Clock = std::chrono::steady_clock; // the same, with its own types

/// The monotonic clock, which the interpreter's waits go by as well, in
/// nanoseconds.
inline int64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

} // namespace torchgil
