// csrc/gil/cpython/gil_lock.h: where the interpreter keeps the lock behind the
// GIL.
#pragma once

#include <pthread.h>

namespace torchgil {

/// The objects that a release and an acquire of the GIL go through.
struct GilLock {
  pthread_mutex_t* mutex = nullptr;
  pthread_cond_t* cond = nullptr; // one signal per release
  pthread_mutex_t* switch_mutex = nullptr;
  pthread_cond_t* switch_cond = nullptr; // one signal per acquire
};

namespace gil_lock {

/// Called with what the interpreter locks and signals, on every thread, while
/// its calls are redirected. Costs one load but during `learn`.
void overhear_lock(pthread_mutex_t* mutex);
void overhear_signal(pthread_cond_t* cond);

/// Releases the GIL once and takes it back, and listens to what the
/// interpreter calls to do so. False where that is not what is known of
/// CPython 3.2 to 3.14: then `found` is as it was.
/// GIL: held on entry and return.
bool learn(GilLock& found);

} // namespace gil_lock
} // namespace torchgil
