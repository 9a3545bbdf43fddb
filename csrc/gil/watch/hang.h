// csrc/gil/watch/hang.h: a hold of the GIL that goes on, looked at from a
// native thread, since no Python code can run.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "clock.h"
#include "cpython/frozen_stack.h"
#include "watch/known_threads.h"

namespace torchgil {

/// What was seen while it went on.
struct Hang {
  struct Thread {
    KnownThread who;
    FrozenStack stack;
  };

  Thread holder;
  std::string state;                // "runs", "sleeps in futex"
  std::vector<std::string> objects; // on its native stack: native_stack.h
  bool collecting = false;          // amid a garbage collection
  bool waiting_known = true;        // false: there is no /proc to ask
  std::vector<Thread> waiting;      // for the GIL
};

struct LookAtHang {
  bool read_stacks = true;   // what can_read_frozen_stacks() has said
  Clock::duration between{}; // looks at what a thread does, of several
};

/// Looks at the thread that holds the GIL, and at those that wait for it, for
/// some ten times `between`. Null where another thread has got it meanwhile.
/// GIL: not needed, and not asked for.
std::shared_ptr<const Hang> look_at_hang(
    const void* holder,
    uint64_t switches,
    const KnownThreads& known,
    const LookAtHang& how);

/// Several lines, each ended. Characters that would begin a new line or speak
/// to a terminal are escaped.
std::string in_words(const Hang& hang, Clock::duration length);

/// One line: it goes on no longer.
std::string end_in_words(const Hang& hang, Clock::duration length);

} // namespace torchgil
