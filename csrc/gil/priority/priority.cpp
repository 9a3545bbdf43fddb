// csrc/gil/priority/priority.cpp: the blocks with priority, and the ends of
// their windows.
//
// What CPython does (take_gil() in ceval_gil.c): a thread that wants the GIL
// and finds it taken waits on a condition variable for one switch interval, 5
// ms. Only when that time is out does it ask the holder to give way, and waits
// on. The holder looks for such a request between two bytecodes.
//
// What is done here: where a thread is to ask sooner, its wait returns
// ETIMEDOUT at once, and the interpreter does the rest itself. No interval is
// changed, and the holder gives way exactly as it would 5 ms later.
//
// The protocol. A thread with priority is one in a block, or at the end of a
// window of nogil's (mark.h). There are two sides, those threads and all the
// others; `Balance` knows which has the GIL, and what was kept from the other.
//   A thread with priority that finds the GIL
//     with one of the others    waits until nothing is owed, then asks;
//     with another of its side  waits until that one lets it go. Only after
//                               200 us does it ask: a thread that is thrown
//                               out and one that throws it out would lose
//                               more by the switches than either can gain.
//                               One that was itself forced to give way asks
//                               when the interpreter would, or two busy
//                               threads would do nothing but switch.
//   One of the others that finds it
//     with a thread with priority  waits until a turn is owed (a tenth of a
//                                  millisecond, or a whole one where windows
//                                  are short), then asks, or when the
//                                  interpreter would;
//     with one of the others       waits as the interpreter has it.
//   Who asked and has not got it looks again, and asks again, after 1 ms.
// Each side waits in a line, each thread at a condition of its own (Waiter):
// one that looks again, as all do, keeps its place. At a condition in common it
// would come to the end, and of two others one was seen without the GIL for 390
// ms. Whoever lets the GIL go wakes one thread alone: the first of the others
// where these have asked, else the first with priority, else of the others.
// Were both sides woken, the other one would often be the quicker, would be
// asked in turn, and twice the requests would be made.
//
// A release that will be short wakes nobody (windows.h): the other thread would
// have the GIL for a moment, or find it taken again, and two switches would
// cost more than the window is long. So a thread of many tiny ops keeps the GIL
// until the other side asks for it, a millisecond at a time. Where a window
// turns out to be long, those that wait find the GIL free as they look; where
// somebody has asked, it is handed over at any release.
//
// Who may do what: `ends_window`, `depth`, `window` and `mine` are a thread's
// own. All else is read and written under the GIL's own mutex, which the
// interpreter holds when it calls wait() and signal(). What stands for a
// waiting thread goes when its wait returns, also where the interpreter ends
// its thread in the middle (RAII).
#include <Python.h>

#include "priority/priority.h"

#include "cpython/gil_holder.h"
#include "priority/mark.h"
#include "priority/turns.h"
#include "priority/windows.h"
#include "redirect/redirect.h"

#include <pthread.h>

#include <new>

namespace torchgil::priority {
namespace {

redirect::Next next_save_thread(&PyEval_SaveThread);
redirect::Next next_restore_thread(&PyEval_RestoreThread);
redirect::Next next_acquire_thread(&PyEval_AcquireThread);
redirect::Next next_ensure(&PyGILState_Ensure);

// The thread's own, shared with the blocks that it is in: one of them may end
// on another thread, as a generator's that is collected there. A thread-local
// variable with a destructor would wait for the loader's lock at its first use,
// with the GIL held.
pthread_key_t own_depth_key;
const int own_depth_made = pthread_key_create(&own_depth_key, [](void* own) {
  depth = nullptr;
  delete static_cast<Depth*>(own);
});

const Depth& own_depth() {
  auto* own = static_cast<Depth*>(pthread_getspecific(own_depth_key));
  if (!own) {
    auto made =
        std::make_unique<Depth>(std::make_shared<std::atomic<int64_t>>(0));
    if (pthread_setspecific(own_depth_key, made.get()) != 0) {
      throw std::bad_alloc();
    }
    own = made.release();
    depth = own->get();
  }
  return *own;
}

// The entry points that begin and end a window. GIL: as the function of the
// same name has it. No noexcept: at interpreter exit these end the thread by
// unwinding it.

PyThreadState* save_thread() {
  if (!in_block()) {
    return next_save_thread();
  }
  window.begins(__builtin_return_address(0));
  PyThreadState* state = next_save_thread();
  window.began();
  return state;
}

void restore_thread(PyThreadState* state) {
  if (!in_block()) {
    return next_restore_thread(state);
  }
  window.ends();
  const Asks asks;
  next_restore_thread(state);
}

void acquire_thread(PyThreadState* state) {
  if (!in_block()) {
    return next_acquire_thread(state);
  }
  window.ends();
  const Asks asks;
  next_acquire_thread(state);
}

PyGILState_STATE ensure() {
  if (!in_block()) {
    return next_ensure();
  }
  window.ends();
  const Asks asks;
  return next_ensure();
}

redirect::Client& entry_points = *new redirect::Client(
    redirect::Client::Place::kInner,
    {
        redirect::hook("PyEval_SaveThread", next_save_thread, &save_thread),
        redirect::hook(
            "PyEval_RestoreThread", next_restore_thread, &restore_thread),
        redirect::hook(
            "PyEval_AcquireThread", next_acquire_thread, &acquire_thread),
        redirect::hook("PyGILState_Ensure", next_ensure, &ensure),
    });

constexpr char kNoDescriptor[] =
    "no file descriptor was free to look at what is loaded; it is tried again";

const char* try_to_redirect() {
#ifdef Py_GIL_DISABLED
  return "this build of Python has no GIL";
#else
  if (!redirect::supported()) {
    return "calls cannot be redirected on this platform: the loaded objects "
           "are not ELF for x86-64 or aarch64";
  }
  if (!gil_holder_known()) {
    return "where the GIL lies is not known of this version of CPython";
  }
  waits.install();
  if (!redirect::could_look()) {
    waits.uninstall();
    return kNoDescriptor;
  }
  if (!follows_forks() || own_depth_made != 0 ||
      !waits.covers_interpreter("pthread_cond_timedwait") ||
      !waits.covers_interpreter("pthread_cond_signal")) {
    waits.uninstall();
    return "this interpreter does not wait for the GIL in a call of "
           "pthread_cond_timedwait that can be redirected";
  }
  return nullptr;
#endif
}

constexpr char kNotTried[] = "";
std::atomic<const char*> why_not{kNotTried};

} // namespace

// Not a variable whose initialiser tries it: that would be a lock, under which
// the GIL is given up. Threads that come at once try it each, and find the
// same. The GIL is got back with priority, or the first block of a process
// would begin by waiting for a switch interval.
const char* redirect_wait() {
  const char* known = why_not.load(std::memory_order_acquire);
  if (known == kNotTried) {
    const Asks asks;
    known = try_to_redirect();
    if (known != kNoDescriptor) {
      why_not.store(known, std::memory_order_release);
    }
  }
  return known;
}

Depth enter() {
  // Calls of the interpreter's dlopen are followed; what was loaded otherwise
  // is added at a thread's first block: asking the loader at each would take a
  // microsecond. That gives the GIL up, and gets it back with priority.
  const bool first = !depth || why_not == kNotTried;
  if (first && redirect_wait() == nullptr) {
    const Asks asks;
    entry_points.keep_installed();
  }
  const Depth& own = own_depth();
  ++*own;
  return own;
}

void leave(const Depth& entered) {
  --*entered;
}

bool has_priority() {
  return in_block();
}

bool sees_own_releases() {
  return entry_points.covers_interpreter("PyEval_RestoreThread");
}

} // namespace torchgil::priority
