// csrc/gil/threads/own_threads.cpp: see own_threads.h.
#include "threads/own_threads.h"

#include "initial_exec.h"
#include "redirect/redirect.h"

namespace torchgil::threads {
namespace {

TORCHGIL_INITIAL_EXEC
thread_local bool keeps_own = false;

redirect::Next<void()> next_init_num_threads;

/// What at::internal::lazy_init_num_threads() calls, in whichever library.
void init_num_threads() {
  if (!keeps_own) {
    next_init_num_threads();
  }
}

redirect::Client& first_regions = *new redirect::Client(
    redirect::Client::Place::kInner,
    {redirect::hook(
        "_ZN2at16init_num_threadsEv",
        next_init_num_threads,
        &init_num_threads)});

} // namespace

// Calls of the interpreter's dlopen are followed; what was loaded otherwise is
// added here.
void keep_own_threads(void (*original)()) {
  next_init_num_threads.set_original(original);
  first_regions.keep_installed();
  keeps_own = true;
}

} // namespace torchgil::threads
