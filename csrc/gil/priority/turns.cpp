// csrc/gil/priority/turns.cpp: who waits for the GIL in which way, and who is
// woken. The protocol stands at the top of priority.cpp.
#include "priority/turns.h"

#include "clock.h"
#include "cpython/gil_holder.h"
#include "cpython/switch_cond.h"
#include "initial_exec.h"
#include "priority/balance.h"
#include "priority/line.h"
#include "priority/mark.h"
#include "priority/windows.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace torchgil::priority {
namespace {

redirect::Next next_wait(&pthread_cond_timedwait);
redirect::Next next_signal(&pthread_cond_signal);

std::atomic<uint64_t> answered{0};
std::atomic<uint64_t> waited_first{0};
std::atomic<uint64_t> others_turns{0};

// For so long a thread that comes back from a window leaves the GIL to another
// with priority, which lets it go at its next op most of the time.
constexpr int64_t kPatience = 200'000;
// How long a request may bring nothing before it is made again, and how long a
// thread with priority waits before it looks who has the GIL now. CPython 3.12
// loses a request that comes just as the holder was given the GIL
// (COMPUTE_EVAL_BREAKER at the end of _Py_HandlePending()).
constexpr int64_t kLookAgain = 1'000'000;

/// A thread's wait for the GIL, from its first look on until it has had it.
struct Wait {
  int64_t since = 0;       // 0: it does not wait
  int64_t peers_until = 0; // then it asks one with priority, too
  bool asks = false;       // just now
  bool has_asked = false;
};

TORCHGIL_INITIAL_EXEC
constinit thread_local Wait mine;

// All below is read and written under the GIL's mutex.
constinit Balance balance;
bool priority_asked = false; // since the last release
bool others_asked = false;
int others_looking = 0; // of those that wait, how many look again soon

/// Counts the calling thread as long as it lives, also where it ends in its
/// wait.
struct Counted {
  explicit Counted(int& count) : count(count) {
    ++count;
  }
  ~Counted() {
    --count;
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  int& count;
};

// The condition that a release of the GIL signals, once somebody has waited for
// it. Of the main interpreter's alone: there is no line for those of others.
std::atomic<const pthread_cond_t*> gil_cond{nullptr};

bool is_the_gil(const pthread_cond_t* cond) {
  const pthread_cond_t* known = gil_cond.load(std::memory_order_relaxed);
  if (known) {
    return cond == known;
  }
  const GilMemory gil = gil_memory();
  const auto address = reinterpret_cast<uintptr_t>(cond);
  if (address < gil.begin || address >= gil.end) {
    return false;
  }
  gil_cond.store(cond, std::memory_order_relaxed);
  // Who has waited since before this was redirected comes into a line.
  pthread_cond_broadcast(const_cast<pthread_cond_t*>(cond));
  return true;
}

/// Waits for so many nanoseconds, and then returns as if it were woken for
/// nothing; or until `until` where that is sooner.
int wait_at_most(
    int64_t ns,
    pthread_cond_t* cond,
    pthread_mutex_t* mutex,
    const timespec* until) {
  const int64_t at = now_ns() + ns;
  const timespec early{at / 1'000'000'000, at % 1'000'000'000};
  const bool sooner = early.tv_sec < until->tv_sec ||
      (early.tv_sec == until->tv_sec && early.tv_nsec < until->tv_nsec);
  const int result = next_wait(cond, mutex, sooner ? &early : until);
  return sooner && result == ETIMEDOUT ? 0 : result;
}

/// Says to the interpreter that its wait is over: it asks the holder to give
/// way.
int ask(bool& side_asked, std::atomic<uint64_t>& counter) {
  counter.fetch_add(!mine.has_asked, std::memory_order_relaxed);
  mine.asks = mine.has_asked = side_asked = true;
  return ETIMEDOUT;
}

int wait_with_priority(pthread_mutex_t* mutex, const timespec* until) {
  const int64_t now = now_ns();
  if (!mine.since) {
    mine.since = now;
    mine.peers_until = ends_window
        ? now + kPatience
        : static_cast<int64_t>(until->tv_sec) * 1'000'000'000 + until->tv_nsec;
  }
  int64_t ns = kLookAgain;
  if (!std::exchange(mine.asks, false)) {
    const bool peer = balance.in_block();
    ns = peer ? mine.peers_until - now : balance.owed(now);
    if (ns <= 0) {
      return ask(priority_asked, answered);
    }
    waited_first.fetch_add(!peer, std::memory_order_relaxed);
  }
  Waiter self(line_with_priority, mine.since);
  const int result =
      wait_at_most(std::min(ns, kLookAgain), &self.woken, mutex, until);
  priority_asked |= result == ETIMEDOUT; // its interval is short
  return result;
}

int wait_as_another(pthread_mutex_t* mutex, const timespec* until) {
  const int64_t now = now_ns();
  if (!mine.since) {
    mine.since = now;
  }
  int result = 0;
  if (const bool asks = std::exchange(mine.asks, false);
      asks || balance.in_block()) {
    const int64_t ns = asks ? kLookAgain : balance.until_owed(now);
    if (ns == 0) {
      return ask(others_asked, others_turns);
    }
    const Counted looking(others_looking);
    Waiter self(line_of_others, mine.since);
    result = wait_at_most(ns, &self.woken, mutex, until);
  } else {
    Waiter self(line_of_others, mine.since);
    result = next_wait(&self.woken, mutex, until);
  }
  others_asked |= result == ETIMEDOUT; // its interval is over
  return result;
}

/// Of the GIL of a sub-interpreter: asks at once, and has no line to wait in.
int wait_elsewhere(
    pthread_cond_t* cond, pthread_mutex_t* mutex, const timespec* until) {
  if (!ends_window) {
    return next_wait(cond, mutex, until);
  }
  if (std::exchange(mine.asks, false)) {
    return wait_at_most(kLookAgain, cond, mutex, until);
  }
  bool there = false; // nobody is in a line
  return ask(there, answered);
}

// The interpreter calls these with the GIL's mutex held, the first in
// take_gil() alone. GIL: not held; being let go, or just taken.

int wait(pthread_cond_t* cond, pthread_mutex_t* mutex, const timespec* until) {
  const bool has_priority = ends_window || in_block();
  if (!is_the_gil(cond)) {
    return has_priority ? wait_elsewhere(cond, mutex, until)
                        : next_wait(cond, mutex, until);
  }
  return has_priority ? wait_with_priority(mutex, until)
                      : wait_as_another(mutex, until);
}

/// The GIL is let go, and one thread is woken; nobody where that would not pay.
/// Those that wait look by themselves then, so it needs one that does.
int release(pthread_cond_t* cond) {
  Waiter* other = line_of_others.first;
  Waiter* first = line_with_priority.first;
  const bool wanted = other || first;
  const int64_t now = wanted || balance.counts() ? now_ns() : 0;
  if (wanted && window.releases()) {
    balance.begins_window(window.is_short(), now);
    if (!priority_asked && !others_asked) {
      window.time(now); // in another one the thread may have lost its core
      if (window.is_short() && (!other || others_looking > 0)) {
        balance.released(false, now);
        return 0;
      }
    }
  }
  const bool to_priority = first && !(others_asked && other);
  balance.released(to_priority && priority_asked, now);
  priority_asked = others_asked = false;
  Waiter* next = to_priority ? first : other;
  return next_signal(next ? &next->woken : cond);
}

int signal(pthread_cond_t* cond) {
  mine = {};
  const pthread_cond_t* known = gil_cond.load(std::memory_order_relaxed);
  if (!known) {
    return next_signal(cond);
  }
  if (is_switch_cond(cond, known)) {
    balance.taken(ends_window || in_block(), depth);
  } else if (cond == known) {
    return release(cond);
  }
  return next_signal(cond);
}

// The threads that waited stayed in the parent.
const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
  line_with_priority = line_of_others = {};
  others_looking = 0;
  priority_asked = others_asked = false;
});

} // namespace

redirect::Client& waits = *new redirect::Client(
    redirect::Client::Place::kInner,
    {
        redirect::hook("pthread_cond_timedwait", next_wait, &wait, true),
        redirect::hook("pthread_cond_signal", next_signal, &signal, true),
    });

bool follows_forks() {
  return fork_handler == 0;
}

uint64_t answers() {
  return answered.load(std::memory_order_relaxed);
}

uint64_t owed_waits() {
  return waited_first.load(std::memory_order_relaxed);
}

uint64_t turns_of_others() {
  return others_turns.load(std::memory_order_relaxed);
}

} // namespace torchgil::priority
