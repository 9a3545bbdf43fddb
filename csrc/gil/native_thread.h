// csrc/gil/native_thread.h: what our own threads have in common.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace torchgil {

/// Signals must reach the threads that Python can interrupt: a thread that is
/// started while one of these lives blocks them all.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() {
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

inline void name_this_thread(const char* name) {
#ifdef __linux__
  pthread_setname_np(pthread_self(), name); // at most 15 characters
#endif
}

} // namespace torchgil
