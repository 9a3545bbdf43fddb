// csrc/gil/priority/balance.h: what threads with priority leave to the others.
#pragma once

#include "clock.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace torchgil::priority {

/// For how long the threads with priority left the GIL to the others, less for
/// how long they kept from them what they had asked for. While they have kept
/// more than they left, they owe the rest, and none of them asks again before
/// it is paid. So together they take no more from the others than they leave
/// them, however short their windows are.
///
/// What was asked for is kept from the moment its holder gives way (nobody runs
/// until the one that asked has woken) until one of the others has had the GIL
/// again: a window too short for them to come back in is kept as well.
///
/// It belongs to one GIL, that of the main interpreter. Everything but taken()
/// is called with that GIL's mutex held.
class Balance {
 public:
  /// A thread with priority finds the GIL taken. Returns what is owed, in
  /// nanoseconds; 0 where it may ask at once.
  int64_t owed() {
    const int64_t now = now_ns();
    wanted_ = now;
    if (!counts_) {
      counts_ = true;
      kept_ = false;
      balance_ = 0;
      changed_ = now;
    }
    if (!taken_.load(std::memory_order_relaxed)) {
      others_had_it();
    }
    const int64_t since = now - changed_;
    const int64_t owed = -(kept_ ? balance_ - since : balance_ + since);
    return owed < kLeastOwed ? 0 : owed;
  }

  /// A thread with priority has the GIL, at a window's end. GIL: held.
  void taken() {
    taken_.store(true, std::memory_order_relaxed);
  }

  /// The GIL is let go: for a thread with priority that asked, or for anybody.
  void released(bool for_one_that_asked) {
    const bool by_priority = taken_.load(std::memory_order_relaxed);
    taken_.store(false, std::memory_order_relaxed);
    if (!counts_) {
      return;
    }
    if (by_priority) {
      left_ = now_ns();
      counts_ = kept_ || left_ - wanted_ < kForgotten;
      return;
    }
    others_had_it();
    if (for_one_that_asked) {
      const int64_t now = now_ns();
      balance_ = std::min(balance_ + (now - changed_), kMost);
      changed_ = now;
      kept_ = true;
    }
  }

 private:
  // More is neither saved up nor owed, or one long call would be paid for long
  // after it.
  static constexpr int64_t kMost = 1'000'000;
  // Less is not waited for: the system's timers are 50 us late.
  static constexpr int64_t kLeastOwed = 50'000;
  // Two switch intervals in which nobody found the GIL taken: the others left,
  // and no more looks at the clock until they come back.
  static constexpr int64_t kForgotten = 10'000'000;

  void others_had_it() {
    if (kept_) {
      // Before it was given, where another was quicker than the one that asked.
      const int64_t until = std::max(left_, changed_);
      balance_ = std::max(balance_ - (until - changed_), -kMost);
      changed_ = until;
      kept_ = false;
    }
  }

  bool counts_ = false;
  bool kept_ = false;   // since changed_; else it is with the others since then
  int64_t balance_ = 0; // until changed_
  int64_t changed_ = 0;
  int64_t wanted_ = 0; // when a thread with priority last found the GIL taken
  int64_t left_ = 0;   // when one last let it go
  std::atomic<bool> taken_{false}; // one of them has it
};

} // namespace torchgil::priority
