// csrc/torch/forward/turn.h: one call of a session at a time.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

namespace torchgil::forward {

/// A thread as Python's threading.get_ident() has it.
using ThreadId = uint64_t;

inline ThreadId this_thread() {
  return static_cast<ThreadId>(pthread_self());
}

/// Who may touch the state of a session: the thread that took its flag.
///
/// A session's tensors are plain memory, written by a call that runs without
/// the GIL. They belong to the thread whose number is in `owner_`, from its
/// take() to its give_back(). take() reads with acquire order what give_back()
/// stored with release order, so whoever has it next sees all that was written
/// before, whichever threads the two are; the GIL is no part of this. The
/// threads that an operator uses inside have joined when it returns. Devices
/// that work behind a call order their work by streams, as they do for any
/// tensor.
///
/// Nobody waits: who finds the flag taken gets an error, and so there is no
/// lock order and nothing to deadlock. That includes a call from within a call,
/// by an operator whose kernel is Python, and one from a signal handler there.
class Turn {
 public:
  /// Returns 0 where the calling thread has it now, or who does.
  ThreadId take() {
    ThreadId owner = 0;
    owner_.compare_exchange_strong(
        owner, this_thread(), std::memory_order_acquire);
    return owner;
  }

  void give_back() {
    owner_.store(0, std::memory_order_release);
  }

  /// In the child of a fork, which has no other thread yet. Returns whether
  /// the owner was a thread that is not there any more.
  bool lost_its_owner() {
    const auto owner = owner_.load(std::memory_order_relaxed);
    if (owner == 0 || owner == this_thread()) {
      return false;
    }
    owner_.store(0, std::memory_order_relaxed);
    return true;
  }

 private:
  std::atomic<ThreadId> owner_ = 0;
};

} // namespace torchgil::forward
