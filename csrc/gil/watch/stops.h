// csrc/gil/watch/stops.h: for how long the whole process stood still.
#pragma once

#include <time.h>

#include "clock.h"
#include "os_thread.h"
#include "watch/run_queue.h"

namespace torchgil {

/// A thread that sleeps until a moment, and wakes up late by far, did not run:
/// because it waited for a core, of which the kernel keeps count, or because
/// nothing in the process ran. A signal or a debugger has stopped it then, or
/// the machine stood still. Nobody has held the GIL in that time. Where the
/// process used a core meanwhile, only this thread was late: a hypervisor may
/// take one core away.
class Stops {
 public:
  void falls_asleep(Clock::time_point now) {
    used_ = used_time();
    // Now and then, for it takes 10 us: what this thread waited for a core
    // before it was late is to be taken for little.
    if (now - noted_ > kLate) {
      noted_ = now;
      queued_ = queued_time(this_native_id());
    }
  }

  /// It was to sleep until then, or for less. What of the time since was such a
  /// stop.
  Clock::duration woke_up(Clock::time_point until) {
    const auto late = Clock::now() - until;
    if (late < kLate || used_time() - used_ >= late / 10) {
      return {};
    }
    const auto stopped = late - (queued_time(this_native_id()) - queued_);
    noted_ = {};
    return stopped > kLate ? stopped : Clock::duration{};
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

  Clock::time_point noted_{}; // when `queued_` was
  Clock::duration used_{};
  std::chrono::nanoseconds queued_{};
};

} // namespace torchgil
