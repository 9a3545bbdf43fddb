// csrc/gil/cpython/switch_cond.h: what is signalled as the GIL is taken.
#pragma once

#include <pthread.h>

namespace torchgil {

/// Whether a thread that signals this condition has just taken the GIL whose
/// release signals `gil_cond`: CPython 3.2 to 3.14 keep the two conditions with
/// one mutex in between, and signal the second one in take_gil(), with the
/// first one's mutex held.
inline bool is_switch_cond(
    const pthread_cond_t* cond, const pthread_cond_t* gil_cond) {
  return reinterpret_cast<const char*>(cond) ==
      reinterpret_cast<const char*>(gil_cond) + sizeof(pthread_cond_t) +
      sizeof(pthread_mutex_t);
}

} // namespace torchgil
