// csrc/gil/watch/known_threads.h: the threads that Python can name, for whoever
// has to name them while Python cannot be asked.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

namespace torchgil {

struct KnownThread {
  const void* state = nullptr; // its PyThreadState's address
  uint64_t ident = 0;          // of threading.Thread.ident; 0: not known
  uint64_t native_id = 0;      // the system's number; 0: not known
  std::string name; // UTF-8, half surrogate pairs included; empty: not known
};

/// By the PyThreadState's address, as they were last seen with the GIL: a name
/// that a thread was given since then is not known here. The lock is held for
/// moments, never while anybody asks for the GIL.
class KnownThreads {
 public:
  using Threads = std::unordered_map<const void*, KnownThread>;

  void add(KnownThread thread) {
    std::lock_guard lock(mutex_);
    threads_[thread.state] = std::move(thread);
  }

  void remove(const void* state) {
    std::lock_guard lock(mutex_);
    threads_.erase(state);
  }

  void replace(Threads threads) {
    std::lock_guard lock(mutex_);
    threads_ = std::move(threads);
  }

  Threads all() const {
    std::lock_guard lock(mutex_);
    return threads_;
  }

 private:
  mutable std::mutex mutex_;
  Threads threads_;
};

} // namespace torchgil
