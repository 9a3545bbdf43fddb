// csrc/gil/watch/hang_watch.h: says while it lasts that the GIL is stuck.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "clock.h"
#include "watch/hang.h"
#include "watch/hold_log.h"
#include "watch/known_threads.h"

namespace torchgil {

/// Decides when a hold is a hang, which is then told once it has lasted for
/// `after`, and 2, 4, 8 times as long, and once when it has ended. It writes
/// without Python, and can end the process. Used by the looker alone.
class HangWatch {
 public:
  struct Settings {
    Clock::duration after{};      // 0: there are no hangs
    Clock::duration exit_after{}; // 0: the process goes on
    Clock::duration turn{};       // the switch interval, as it was
    int output = 2;               // a file descriptor
    bool read_stacks = true;      // what can_read_frozen_stacks() has said
  };

  HangWatch(const Settings& settings, const KnownThreads& known)
      : settings_(settings),
        known_(known),
        file_(file_behind(settings.output)) {}

  /// Whether this hold is to be looked at now.
  bool due(const Hold& hold);

  /// Looks at it, without any lock of the prober's. Null where it is over, or
  /// where its thread only had to wait for a core.
  std::shared_ptr<const Hang> look(const Hold& hold, uint64_t switches);

  /// Writes it down, and ends the process if it has lasted so long.
  void tell(const Hold& hold, const Hang& hang);

  /// `hang` goes on no longer.
  void tell_end(const Hang& hang, Clock::duration length) const;

 private:
  /// Its device and number on it; zeros where the descriptor is closed.
  using File = std::pair<uint64_t, uint64_t>;

  static File file_behind(int descriptor);

  void write(std::string_view text) const;

  const Settings settings_;
  const KnownThreads& known_;
  const File file_;
  // Of the hold that was looked at last.
  const void* holder_ = nullptr;
  Clock::time_point first_{};
  Clock::duration next_{};
};

} // namespace torchgil
