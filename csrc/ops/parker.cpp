// csrc/ops/parker.cpp: see parker.h.
#include "ops/parker.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <string>
#include <thread>
#include <utility>

#include <torchgil/gil.h>

namespace py = pybind11;

namespace torchgil {
namespace {

using Clock = std::chrono::steady_clock;

Clock::time_point after(const char* call, double seconds) {
  if (!(seconds >= 0)) { // NaN too
    throw py::value_error(
        std::string(call) + ": seconds must not be negative or NaN, got " +
        std::string(py::repr(py::float_(seconds))));
  }
  constexpr double kThirtyYears = 1e9; // more would not fit a clock
  return Clock::now() +
      std::chrono::duration_cast<Clock::duration>(
             std::chrono::duration<double>(std::min(seconds, kThirtyYears)));
}

} // namespace

Parker::Parker() : no_token_(PyThread_allocate_lock()) {
  if (no_token_ == nullptr) {
    throw std::bad_alloc();
  }
  PyThread_acquire_lock(no_token_, WAIT_LOCK);
}

Parker::~Parker() {
  // Some platforms do not free a lock that is held.
  if (!token_) {
    PyThread_release_lock(no_token_);
  }
  PyThread_free_lock(no_token_);
}

void Parker::unpark() {
  if (!token_.exchange(true)) {
    PyThread_release_lock(no_token_);
  }
}

bool Parker::park(double timeout, Parker* first) {
  const auto until = after("park", timeout);
  while (true) {
    PyLockStatus status;
    {
      ReleaseWindow window;
      if (first != nullptr) {
        // Not in a window of its own: this thread would have the GIL back
        // before the other one could take it.
        std::exchange(first, nullptr)->unpark();
      }
      const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
          until - Clock::now());
      status = PyThread_acquire_lock_timed(
          no_token_, std::max<PY_TIMEOUT_T>(left.count(), 0), /*intr_flag=*/1);
    }
    if (status == PY_LOCK_ACQUIRED) {
      taken();
      return true;
    }
    if (status == PY_LOCK_FAILURE) {
      return false;
    }
    if (PyErr_CheckSignals() != 0) { // PY_LOCK_INTR
      throw py::error_already_set();
    }
  }
}

bool Parker::spin(double seconds) {
  const auto until = after("spin", seconds);
  ReleaseWindow window;
  do {
    if (token_.load(std::memory_order_acquire) &&
        PyThread_acquire_lock(no_token_, NOWAIT_LOCK) != 0) {
      taken();
      return true;
    }
    // Whoever is to unpark may need this very processor.
    std::this_thread::yield();
  } while (Clock::now() < until);
  return false;
}

void Parker::taken() {
  // An exchange, no store: an unpark() that found the token still there said
  // nothing, and what its thread wrote before must be seen all the same.
  token_.exchange(false);
}

} // namespace torchgil
