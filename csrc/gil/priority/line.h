// csrc/gil/priority/line.h: the threads with priority that wait for the GIL.
#pragma once

#include <pthread.h>
#include <time.h>

#include <cstdint>

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

  pthread_cond_t woken;
  static inline constinit Waiter* first = nullptr;

 private:
  const int64_t since_;
  Waiter* next_;
};

} // namespace torchgil::priority
