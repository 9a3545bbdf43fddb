// csrc/gil/cpython/gil_lock.cpp: where the interpreter keeps the lock behind
// the GIL.
#include "cpython/gil_lock.h"

#include <torchgil/gil.h>
#include "initial_exec.h"

#include <atomic>
#include <vector>

namespace torchgil::gil_lock {
namespace {

struct Call {
  bool is_signal;
  void* object;
};

std::atomic<bool> learning{false};
TORCHGIL_INITIAL_EXEC
thread_local std::vector<Call>* lesson = nullptr; // the learning thread's

void overhear(bool is_signal, void* object) {
  if (learning.load(std::memory_order_relaxed) && lesson) {
    lesson->push_back({is_signal, object});
  }
}

} // namespace

void overhear_lock(pthread_mutex_t* mutex) {
  overhear(false, mutex);
}

void overhear_signal(pthread_cond_t* cond) {
  overhear(true, cond);
}

// A release locks the mutex and signals `cond`; an acquire locks the same
// mutex, then a second one, and signals `switch_cond` last.
bool learn(GilLock& found) {
  std::vector<Call> calls;
  calls.reserve(16);
  lesson = &calls;
  learning = true;
  size_t released = 0;
  {
    const ReleaseWindow window;
    released = calls.size();
  }
  learning = false;
  lesson = nullptr;

  const size_t n = calls.size();
  const auto is = [&](size_t i, bool signal) {
    return i < n && calls[i].is_signal == signal;
  };
  if (released < 2 || n < released + 3 || !is(0, false) || !is(1, true) ||
      !is(released, false) || calls[released].object != calls[0].object ||
      !is(n - 2, false) || calls[n - 2].object == calls[0].object ||
      !is(n - 1, true) || calls[n - 1].object == calls[1].object) {
    return false;
  }
  found.mutex = static_cast<pthread_mutex_t*>(calls[0].object);
  found.cond = static_cast<pthread_cond_t*>(calls[1].object);
  found.switch_mutex = static_cast<pthread_mutex_t*>(calls[n - 2].object);
  found.switch_cond = static_cast<pthread_cond_t*>(calls[n - 1].object);
  return true;
}

} // namespace torchgil::gil_lock
