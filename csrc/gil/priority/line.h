// csrc/gil/priority/line.h: the threads that wait for the GIL, in order.
#pragma once

#include <pthread.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpython/gil_holder.h"
#include "own_memory.h"

namespace torchgil::priority {

class Waiter;

/// The threads of one side that wait, the one that waits for longest first.
struct Line {
  Waiter* first = nullptr;
  Waiter* last = nullptr;
};
inline constinit Line line_with_priority;
inline constinit Line line_of_others;

/// A thread that waits, on its stack and in a line. A thread that is ended in
/// its wait leaves the line, too. Under the GIL's mutex.
class Waiter {
 public:
  Waiter(Line& line, int64_t since)
      : line_(line), since_(since), previous_(line.last) {
    pthread_condattr_t clock; // the interpreter's own
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&woken, &clock);
    // From the end, which is where all but those belong that wait again.
    while (previous_ && previous_->since_ > since) {
      next_ = previous_;
      previous_ = previous_->previous_;
    }
    (previous_ ? previous_->next_ : line_.first) = this;
    (next_ ? next_->previous_ : line_.last) = this;
  }
  ~Waiter() {
    (previous_ ? previous_->next_ : line_.first) = next_;
    (next_ ? next_->previous_ : line_.last) = previous_;
    pthread_cond_destroy(&woken);
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  /// Where those in the lines sleep. It is copied word by word from where it
  /// lies, for nobody can ask for the mutex while the GIL is stuck: one that
  /// comes or goes meanwhile may be missed. GIL and mutex: not needed.
  static std::vector<GilMemory> places() {
    constexpr size_t kMost = 1000; // a line that is no line ends, too
    std::vector<GilMemory> found;
    for (const Line* line : {&line_with_priority, &line_of_others}) {
      const Waiter* waiter = nullptr;
      bool read = read_memory(&line->first, waiter);
      for (size_t n = 0; read && waiter != nullptr && n < kMost; ++n) {
        const auto begin = reinterpret_cast<uintptr_t>(&waiter->woken);
        found.push_back({begin, begin + sizeof(pthread_cond_t)});
        read = read_memory(&waiter->next_, waiter);
      }
    }
    return found;
  }

  pthread_cond_t woken;

 private:
  Line& line_;
  const int64_t since_;
  Waiter* previous_;
  Waiter* next_ = nullptr;
};

} // namespace torchgil::priority
