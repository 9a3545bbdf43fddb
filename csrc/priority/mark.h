// csrc/priority/mark.h: a release window whose end asks for the GIL at once.
#pragma once

#include <torchgil/gil.h>

#include "initial_exec.h"
#include "priority/balance.h"

#include <cstdint>
#include <optional>

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
struct Asks {
  Asks() {
    mark = Mark::kAsk;
  }
  ~Asks() {
    mark = Mark::kNone;
    balance.taken();
  }
  Asks(const Asks&) = delete;
  Asks& operator=(const Asks&) = delete;
};

/// A ReleaseWindow that may have priority, whether or not its thread has it.
/// Nothing happens where the interpreter's wait was not redirected
/// (redirect_wait()).
class Window {
 public:
  explicit Window(bool with_priority)
      : window_(std::in_place), with_priority_(with_priority) {}
  ~Window() {
    if (with_priority_) {
      const Asks asks;
      window_.reset();
    }
  }
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

 private:
  std::optional<ReleaseWindow> window_;
  bool with_priority_;
};

} // namespace torchgil::priority
