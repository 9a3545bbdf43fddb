// csrc/gil/priority/mark.h: what the calling thread knows of its own priority.
#pragma once

#include "initial_exec.h"

#include <atomic>
#include <cstdint>

namespace torchgil::priority {

// How many blocks with priority the thread is in. Null in one that never had
// priority, and once it is ending.
TORCHGIL_INITIAL_EXEC
inline constinit thread_local std::atomic<int64_t>* depth = nullptr;

// Set while a release window with priority ends, in a block or not.
TORCHGIL_INITIAL_EXEC
inline constinit thread_local bool ends_window = false;

inline bool in_block() {
  return depth && depth->load(std::memory_order_relaxed) > 0;
}

/// Around what takes the GIL back.
inline void begin_asking() {
  ends_window = true;
}
inline void end_asking() {
  ends_window = false;
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
