// csrc/gil/watch/hold_log.h: who held the GIL while somebody waited for it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "clock.h"
#include "watch/run_queue.h"

namespace torchgil {

struct Hang;

/// One thread seen holding the GIL, look after look, without a gap.
struct Hold {
  const void* holder; // the PyThreadState's address
  Clock::time_point first;
  Clock::time_point last;
  bool may_have_run_on = false; // it held the GIL again later, or could have
  QueuedTimes queued_before{};  // of every thread, early in this hold
  Clock::duration stopped{};    // of it nothing in this process ran (stops.h)
  std::shared_ptr<const Hang> hang{}; // as it was told while it went on

  Clock::duration length() const {
    return last - first - stopped;
  }
};

inline constexpr Clock::duration kQueuedTimesAfter =
    std::chrono::milliseconds(10);

/// Whether a hold of this length is worth reporting, of which its thread spent
/// `queued` waiting for a core. `turn`: the interpreter's switch interval.
///
/// Code that gives way by itself does so after a switch interval; whatever it
/// seems to hold beyond that, the scheduler took. So a hold also needs time of
/// its own, other than that interval and what was not yet measured.
inline bool is_long(
    Clock::duration length,
    Clock::duration queued,
    Clock::duration threshold,
    Clock::duration turn) {
  const auto least = std::max(threshold, 2 * turn);
  const auto own = length - queued;
  return length > least &&
      own > std::min(least / 2, 2 * turn + kQueuedTimesAfter);
}

/// Turns looks at the holder into holds, and keeps the long ones. A thread
/// that waits among others gets the GIL after several turns: only their
/// separate lengths tell a long hold from a queue.
class HoldLog {
 public:
  HoldLog(Clock::duration threshold, Clock::duration look_period)
      : threshold_(threshold), look_period_(look_period) {}

  /// `switches`: gil_switches() at that moment.
  void begin(const void* holder, uint64_t switches, Clock::time_point now) {
    long_holds_.clear();
    current_ = Hold{holder, now, now};
    switches_ = switches;
  }

  /// Of the time since the last look nothing in this process ran for `stopped`.
  void see(
      const void* holder,
      uint64_t switches,
      Clock::time_point now,
      Clock::duration stopped = {}) {
    if (holder == current_.holder && switches == switches_) {
      current_.last = now;
      current_.stopped += stopped;
      return;
    }
    // Whom the GIL went to since the last look, without being seen.
    const uint64_t unseen = switches - switches_ - (holder ? 1 : 0);
    const bool some_unseen = switches != switches_ && unseen > 0;
    const void* before = current_.holder;
    close();
    for (Hold& hold : long_holds_) {
      // The one next to itself it cannot have been.
      hold.may_have_run_on |= hold.holder == holder ||
          (some_unseen && (unseen > 1 || before != hold.holder));
    }
    current_ = Hold{holder, now, now};
    switches_ = switches;
  }

  /// Longer than a turn: what the scheduler takes from now on is to be told
  /// apart from what the holder takes.
  bool wants_queued_times() const {
    return current_.holder != nullptr && current_.queued_before.empty() &&
        current_.length() > std::min(threshold_ / 4, kQueuedTimesAfter);
  }

  /// Half way to a long hold: the end of it is worth not to miss.
  bool getting_long() const {
    return current_.holder != nullptr && current_.length() > threshold_ / 2;
  }

  void set_queued_times(QueuedTimes times) {
    current_.queued_before = std::move(times);
  }

  const Hold& current() const {
    return current_;
  }

  /// Whether this hold still goes on.
  bool goes_on(const Hold& hold) const {
    return hold.holder == current_.holder && hold.first == current_.first;
  }

  void set_hang(std::shared_ptr<const Hang> hang) {
    current_.hang = std::move(hang);
  }

  /// The waiting ended. The last hold lasted until now, unless the looks had
  /// become so rare that one cannot say: two are two periods apart at most, if
  /// none is late. `self` has the GIL now.
  std::vector<Hold> finish(
      const void* self, uint64_t switches, Clock::time_point now) {
    if (now - current_.last <= 3 * look_period_) {
      current_.last = now;
    }
    // The holder itself may be the one that calls this, as the main thread is.
    if (self != current_.holder || switches != switches_) {
      see(self, switches, now);
    }
    close();
    return std::exchange(long_holds_, {});
  }

 private:
  void close() {
    if (current_.holder != nullptr &&
        (current_.length() > threshold_ || current_.hang)) {
      long_holds_.push_back(std::move(current_));
    }
  }

  Clock::duration threshold_;
  Clock::duration look_period_;
  Hold current_{};
  uint64_t switches_ = 0; // at the last look
  std::vector<Hold> long_holds_;
};

} // namespace torchgil
