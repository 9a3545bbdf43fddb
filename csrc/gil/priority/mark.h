// csrc/gil/priority/mark.h: what says that a thread with priority takes the
// GIL.
#pragma once

#include "initial_exec.h"
#include "priority/balance.h"

#include <cstdint>

namespace torchgil::priority {

/// What a thread that is taking the GIL back makes of the interpreter's waits.
enum class Mark : uint8_t {
  kNone,  // nothing: it is no window's end, or has no priority
  kAsk,   // once nothing is owed, the next wait is answered at once: whoever
          // holds the GIL is asked
  kAsked, // the next wait is one, and woken before those that did not ask
};

TORCHGIL_INITIAL_EXEC
inline constinit thread_local Mark mark = Mark::kNone;
inline constinit Balance balance;

/// Around what takes the GIL back.
inline void begin_asking() {
  mark = Mark::kAsk;
}
inline void end_asking() {
  mark = Mark::kNone;
  balance.taken();
}

struct Asks {
  Asks() {
    begin_asking();
  }
  ~Asks() {
    end_asking();
  }
  Asks(const Asks&) = delete;
  Asks& operator=(const Asks&) = delete;
};

} // namespace torchgil::priority
