// csrc/gil/watch/looker.h: the native thread that looks at who holds the GIL,
// one for all that want to know.
#pragma once

#include "clock.h"

namespace torchgil {

/// Who wants looks. Called by the looker's thread alone, with its lock held:
/// between two calls it may be removed. GIL: never held, and must not be asked
/// for.
class LookClient {
 public:
  virtual ~LookClient() = default;

  /// The moment that it wanted has come. Returns the next one.
  virtual Clock::time_point look(Clock::time_point now) = 0;

  /// Somebody else's moment has come, which `due`, its own, need not be any
  /// more. Returns the next one.
  virtual Clock::time_point look_along(
      Clock::time_point now, Clock::time_point due) {
    return due;
  }
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
