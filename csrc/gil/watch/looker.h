// csrc/gil/watch/looker.h: the native thread that looks at who holds the GIL,
// one for all that want to know.
#pragma once

#include "clock.h"

namespace torchgil {

/// When a client is to look next. A look of somebody else's that comes by so
/// much before or after that moment will do as well: the thread need not wake
/// twice.
struct NextLook {
  Clock::time_point due;
  Clock::duration early{};
  Clock::duration late{};
};

/// Who wants looks. Called by the looker's thread alone, with its lock held:
/// between two calls it may be removed. GIL: never held, and must not be asked
/// for.
class LookClient {
 public:
  virtual ~LookClient() = default;

  /// It is time to look. For `stopped` of the time since its last look the
  /// whole process stood still (stops.h).
  virtual NextLook look(Clock::time_point now, Clock::duration stopped) = 0;
};

namespace looker {

/// What stands for "never", as a moment.
inline constexpr Clock::time_point kNever = Clock::time_point::max();

/// The first one starts the thread; throws where the system has no more. GIL:
/// must not be held: a call may last, in which another client writes.
void add(LookClient& client, Clock::time_point first);

/// It is not in a call then, and gets no more; the last one ends the thread.
/// Nothing where it is not there. GIL: must not be held: a call may last.
void remove(LookClient& client);

} // namespace looker
} // namespace torchgil
