// csrc/gil/watch/stops.h: for how long the whole process stood still.
#pragma once

#include <time.h>

#include <utility>

#include "clock.h"
#include "os_thread.h"
#include "watch/run_queue.h"

namespace torchgil {

/// A thread that looks once in each period, and is late by far, did not run:
/// because it waited for a core, of which the kernel keeps count, or because
/// nothing in the process ran. A signal or a debugger has stopped it then, or
/// the machine stood still. Nobody has held the GIL in that time. Where the
/// process used a core meanwhile, only this thread was late: a hypervisor may
/// take one core away.
class Stops {
 public:
  explicit Stops(Clock::duration period) : period_(period) {}

  /// What of the time since the call before was such a stop.
  Clock::duration since_last() {
    const auto now = Clock::now();
    const auto gap = now - std::exchange(last_, now);
    const auto used = used_time();
    const auto used_in_gap = used - std::exchange(used_, used);
    if (gap < kLate + period_) {
      note_queued_time(now);
      return {};
    }
    const auto before = queued_;
    noted_ = {};
    note_queued_time(now);
    const auto stopped = gap - period_ - (queued_ - before);
    return used_in_gap < gap / 10 && stopped > kLate ? stopped
                                                     : Clock::duration{};
  }

  /// The thread did something else until now. To be called before the first
  /// since_last(), in the same thread.
  void begin_again() {
    last_ = Clock::now();
    used_ = used_time();
    note_queued_time(last_);
  }

 private:
  static constexpr Clock::duration kLate = std::chrono::milliseconds(100);

  /// Of a core, by all threads of the process.
  static Clock::duration used_time() {
    timespec used{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return std::chrono::seconds(used.tv_sec) +
        std::chrono::nanoseconds(used.tv_nsec);
  }

  /// Now and then, for it takes 10 us: what this thread waited for a core
  /// before it was late is to be taken for little.
  void note_queued_time(Clock::time_point now) {
    if (now - noted_ > kLate) {
      noted_ = now;
      queued_ = queued_time(this_native_id());
    }
  }

  const Clock::duration period_;
  Clock::time_point last_{};
  Clock::time_point noted_{}; // when `queued_` was
  Clock::duration used_{};
  std::chrono::nanoseconds queued_{};
};

} // namespace torchgil
