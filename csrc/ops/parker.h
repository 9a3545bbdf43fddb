// csrc/ops/parker.h: one thread stops until another lets it go on.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>

namespace torchgil {

/// Holds one token or none: unpark() puts it there, park() and spin() wait for
/// it and take it. So no unpark() is lost, whichever side comes first, and many
/// of them count once. For one waiting thread at a time. (Java's LockSupport
/// and Rust's std::thread have the same two calls under the same names.)
///
/// What it has over a lock of Python's: a thread can wait for some microseconds
/// without going to sleep, and can let another thread go on at a moment when
/// the GIL is free to be taken. Where that thread found the GIL taken, it would
/// go to sleep after all.
class Parker {
 public:
  Parker();
  ~Parker();
  Parker(const Parker&) = delete;
  Parker& operator=(const Parker&) = delete;
  Parker(Parker&&) = delete;
  Parker& operator=(Parker&&) = delete;

  /// Never waits. GIL: left as it is.
  void unpark();

  /// Sleeps until there is a token, for `timeout` seconds at most; whether
  /// there was. `first`, if any, is unparked before, once the GIL is free.
  /// GIL: held on entry, released while it waits. Signal handlers run in time.
  bool park(double timeout, Parker* first);

  /// Waits for a token with a processor kept busy, for `seconds` at most;
  /// whether there was one. GIL: held on entry, released while it waits.
  bool spin(double seconds);

 private:
  void taken();

  // A lock of Python's, held while there is no token: it is portable, it times
  // out on the monotonic clock, and unlike a condition variable it can be freed
  // in a forked child whose parent has a thread waiting there.
  PyThread_type_lock no_token_;
  std::atomic<bool> token_{false};
};

} // namespace torchgil
