// csrc/torch/forward/priority_window.h: a release window that may have
// priority.
#pragma once

#include <torchgil/gil.h>

#include "gil_functions.h"

#include <cstdint>
#include <optional>

namespace torchgil::forward {

/// How often this thread's calls have released the GIL: the tests' witness.
inline constinit thread_local int64_t releases = 0;

/// A ReleaseWindow that asks for the GIL at once when it ends, whether or not
/// its thread has priority. Nothing happens where the interpreter's wait was
/// not redirected, which torchgil/_priority.py sees to.
class PriorityWindow {
 public:
  explicit PriorityWindow(bool with_priority)
      : window_(std::in_place), with_priority_(with_priority) {
    ++releases;
  }
  ~PriorityWindow() {
    if (with_priority_) {
      gil->begin_asking();
      window_.reset();
      gil->end_asking();
    }
  }
  PriorityWindow(const PriorityWindow&) = delete;
  PriorityWindow& operator=(const PriorityWindow&) = delete;

 private:
  std::optional<ReleaseWindow> window_;
  bool with_priority_;
};

} // namespace torchgil::forward
