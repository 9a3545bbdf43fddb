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
      return {};
    }
    const auto queued = own_queued_time();
    const auto waited = queued - std::exchange(queued_, queued);
    const auto stopped = gap - period_ - waited;
    return used_in_gap < gap / 10 && stopped > kLate ? stopped
                                                     : Clock::duration{};
  }

  /// The thread did something else until now.
  void begin_again() {
    last_ = Clock::now();
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

  static std::chrono::nanoseconds own_queued_time() {
    return queued_time(this_native_id());
  }

  const Clock::duration period_;
  Clock::time_point last_ = Clock::now();
  Clock::duration used_ = used_time();
  std::chrono::nanoseconds queued_ = own_queued_time();
};

} // namespace torchgil
