// csrc/gil/priority/windows.h: which releases are too short to be handed over.
#pragma once

#include "clock.h"
#include "initial_exec.h"

#include <atomic>
#include <cstdint>

namespace torchgil::priority {

/// How many of the last releases from one place in the program were short: each
/// op of torch has a place of its own. For all threads; two places may share
/// one, and a count may be lost, which costs a wrong guess.
using Place = std::atomic<uint8_t>;

inline Place& place_of(const void* caller) {
  static constinit Place places[1024];
  const auto address = reinterpret_cast<uintptr_t>(caller);
  return places[(address * 0x9E3779B97F4A7C15u) >> 54];
}

/// The calling thread's releases through PyEval_SaveThread.
class Window {
 public:
  /// Around the call.
  void begins(const void* caller) {
    releasing_ = &place_of(caller);
  }
  void began() {
    releasing_ = nullptr;
  }

  /// Whether the GIL is let go for a window that can be told short from long.
  /// Only within begins() and began().
  bool releases() const {
    return releasing_;
  }

  /// Whether it will be short, as the last ones from its place were.
  bool is_short() const {
    return releasing_->load(std::memory_order_relaxed) >= kInARow;
  }

  /// It begins now and is timed.
  void time(int64_t now) {
    timed_ = releasing_;
    since_ = now;
  }

  /// The thread asks for the GIL again.
  void ends() {
    if (timed_) {
      const bool was_short = now_ns() - since_ < kShort;
      const uint8_t before = timed_->load(std::memory_order_relaxed);
      const uint8_t after = was_short ? before + (before < kInARow) : 0;
      if (after != before) {
        timed_->store(after, std::memory_order_relaxed);
      }
      timed_ = nullptr;
    }
  }

 private:
  // Within it another thread is hardly woken, and then asked at once.
  static constexpr int64_t kShort = 20'000;
  static constexpr uint8_t kInARow = 2;

  Place* releasing_ = nullptr;
  Place* timed_ = nullptr;
  int64_t since_ = 0;
};

TORCHGIL_INITIAL_EXEC
inline constinit thread_local Window window;

} // namespace torchgil::priority
