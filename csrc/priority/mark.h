// csrc/priority/mark.h: a release window whose end asks for the GIL at once.
#pragma once

#include <torchgil/gil.h>

#include <cstdint>

namespace torchgil::priority {

/// What a thread that is taking the GIL back makes of the interpreter's waits.
enum class Mark : uint8_t {
  kNone,  // nothing: it is no window's end, or has no priority
  kAsk,   // the next wait is answered at once: whoever holds the GIL is asked
  kAsked, // the next wait is one, and among the first to be woken
};

inline constinit thread_local Mark mark = Mark::kNone;

/// A ReleaseWindow that may have priority, whether or not its thread has it.
/// Nothing happens where the interpreter's wait was not redirected
/// (redirect_wait()).
class Window {
 public:
  explicit Window(bool with_priority)
      : at_end_{with_priority ? Mark::kAsk : Mark::kNone} {}

 private:
  struct SetMark {
    Mark value;
    ~SetMark() {
      mark = value;
    }
  };
  // Destroyed from the last to the first: mark, take the GIL back, unmark.
  SetMark after_{Mark::kNone};
  ReleaseWindow window_;
  SetMark at_end_;
};

} // namespace torchgil::priority
