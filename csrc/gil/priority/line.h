// csrc/gil/priority/line.h: the threads with priority that wait for the GIL.
#pragma once

#include <pthread.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpython/gil_holder.h"
#include "own_memory.h"

namespace torchgil::priority {

/// A thread with priority that waits, on its stack and in the line of those
/// that do: the one that waits for longest comes first. A thread that is ended
/// in its wait leaves the line, too. Under the GIL's mutex.
class Waiter {
 public:
  explicit Waiter(int64_t since) : since_(since) {
    pthread_condattr_t clock; // the interpreter's own
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&woken, &clock);
    Waiter** place = &first;
    while (*place && (*place)->since_ <= since) {
      place = &(*place)->next_;
    }
    next_ = *place;
    *place = this;
  }
  ~Waiter() {
    Waiter** place = &first;
    while (*place != this) {
      place = &(*place)->next_;
    }
    *place = next_;
    pthread_cond_destroy(&woken);
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  /// Where those in the line sleep. It is copied word by word from where it
  /// lies, for nobody can ask for the mutex while the GIL is stuck: one that
  /// comes or goes meanwhile may be missed. GIL and mutex: not needed.
  static std::vector<GilMemory> places() {
    constexpr size_t kMost = 1000; // a line that is no line ends, too
    std::vector<GilMemory> found;
    const Waiter* waiter = nullptr;
    bool read = read_memory(&first, waiter);
    while (read && waiter != nullptr && found.size() < kMost) {
      const auto begin = reinterpret_cast<uintptr_t>(&waiter->woken);
      found.push_back({begin, begin + sizeof(pthread_cond_t)});
      read = read_memory(&waiter->next_, waiter);
    }
    return found;
  }

  pthread_cond_t woken;
  static inline constinit Waiter* first = nullptr;

 private:
  const int64_t since_;
  Waiter* next_;
};

} // namespace torchgil::priority
