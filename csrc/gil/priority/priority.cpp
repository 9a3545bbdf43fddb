// csrc/gil/priority/priority.cpp: the early answer to the interpreter's wait.
//
// What CPython does (take_gil() in ceval_gil.c): a thread that wants the GIL
// and finds it taken waits on a condition variable for one switch interval, 5
// ms. Only when that time is out does it ask the holder to give way, and waits
// on. The holder looks for such a request between two bytecodes.
//
// What is done here: for a thread with priority the first of these waits
// returns ETIMEDOUT at once, and the interpreter does the rest itself. No
// interval is changed, and the holder gives way exactly as it would 5 ms
// later.
//
// The protocol. `mark` says what the calling thread's next wait for the GIL
// is:
//   kNone    a wait like any other.
//   kAsk     set while a release window of a thread with priority ends. If the
//            threads without priority are owed time (balance.h), the wait
//            lasts until that is paid. Else it returns ETIMEDOUT: the
//            interpreter asks the holder to give way. Then the mark is kAsked.
//   kAsked   the thread has asked. It waits on a condition variable of its own
//            (Waiter), in the line of those that have asked, until it is woken
//            or the switch interval is over; then the mark is kAsk again.
// Whoever lets the GIL go and signals it wakes the first of that line instead
// of a thread without priority. Were both woken, the other one would often be
// the quicker, would be asked in turn, and twice the requests would be made.
//
// Only the way back from a release window is treated so, which the redirected
// entry points tell. A thread that was forced to switch waits like any other:
// otherwise two busy threads would do nothing but switch.
//
// Who may do what: `mark` and `depth` are a thread's own. The line of Waiters
// and `balance` are read and written under the GIL's own mutex, which the
// interpreter holds when it calls wait() and signal(); `balance.taken()` alone
// is called without. An entry leaves the line when its wait returns, also
// where the interpreter ends its thread in the middle (RAII).
#include <Python.h>

#include "priority/priority.h"

#include "cpython/lost_requests.h"
#include "initial_exec.h"
#include "priority/mark.h"
#include "redirect/redirect.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include <new>

namespace torchgil::priority {
namespace {

redirect::Next next_wait(&pthread_cond_timedwait);
redirect::Next next_signal(&pthread_cond_signal);
redirect::Next next_restore_thread(&PyEval_RestoreThread);
redirect::Next next_acquire_thread(&PyEval_AcquireThread);
redirect::Next next_ensure(&PyGILState_Ensure);

std::atomic<uint64_t> answered{0};
std::atomic<uint64_t> waited_first{0};

// Null in a thread that never had priority, and once it is ending.
TORCHGIL_INITIAL_EXEC
constinit thread_local std::atomic<int64_t>* depth = nullptr;

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

bool thread_has_priority() {
  return depth && depth->load(std::memory_order_relaxed) > 0;
}

// The condition that a release of the GIL signals. Of one GIL alone: with
// several, those of sub-interpreters, the others' threads wait in line.
std::atomic<pthread_cond_t*> gil_cond{nullptr};

/// A thread with priority that has asked and waits, on its stack and in the
/// line of those that do. A thread that is ended in its wait leaves the line,
/// too. Under the GIL's mutex.
struct Waiter {
  pthread_cond_t woken;
  Waiter* next = nullptr;

  Waiter() {
    pthread_condattr_t clock; // the interpreter's own
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&woken, &clock);
    *place_of(nullptr) = this;
  }
  ~Waiter() {
    *place_of(this) = next;
    pthread_cond_destroy(&woken);
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  static Waiter* first;

 private:
  // What points at it; at nobody: the end of the line.
  static Waiter** place_of(const Waiter* waiter) {
    Waiter** place = &first;
    while (*place != waiter) {
      place = &(*place)->next;
    }
    return place;
  }
};

constinit Waiter* Waiter::first = nullptr;

bool is_known_gil(pthread_cond_t* cond) {
  pthread_cond_t* known = nullptr;
  return gil_cond.compare_exchange_strong(known, cond) || known == cond;
}

constexpr int kEarly = -1; // neither woken nor, to the interpreter, late

/// Waits for so many nanoseconds, or until `until` where that is sooner.
int wait_at_most(
    int64_t ns,
    pthread_cond_t* cond,
    pthread_mutex_t* mutex,
    const timespec* until) {
  const int64_t at = now_ns() + ns;
  const timespec early{at / 1'000'000'000, at % 1'000'000'000};
  const bool sooner = early.tv_sec < until->tv_sec ||
      (early.tv_sec == until->tv_sec && early.tv_nsec < until->tv_nsec);
  const int result = next_wait(cond, mutex, sooner ? &early : until);
  return sooner && result == ETIMEDOUT ? kEarly : result;
}

// A request that brings nothing for so many nanoseconds is made again.
constexpr int64_t kAskAgain = 1'000'000;

int wait_asked(
    pthread_cond_t* cond, pthread_mutex_t* mutex, const timespec* until) {
  if constexpr (!kRequestsMayBeLost) {
    return next_wait(cond, mutex, until);
  }
  const int result = wait_at_most(kAskAgain, cond, mutex, until);
  if (result == kEarly) {
    mark = Mark::kAsked;
    return ETIMEDOUT; // the interpreter asks, unless the holder is another now
  }
  return result;
}

int wait_first(
    pthread_cond_t* cond, pthread_mutex_t* mutex, const timespec* until) {
  if (!is_known_gil(cond)) {
    return wait_asked(cond, mutex, until);
  }
  Waiter self;
  return wait_asked(&self.woken, mutex, until);
}

// The interpreter calls these with the GIL's mutex held, the first in
// take_gil() alone. GIL: not held; being let go.

int wait(pthread_cond_t* cond, pthread_mutex_t* mutex, const timespec* until) {
  switch (mark) {
    case Mark::kAsk:
      if (const int64_t owed = is_known_gil(cond) ? balance.owed() : 0) {
        waited_first.fetch_add(1, std::memory_order_relaxed);
        const int result = wait_at_most(owed, cond, mutex, until);
        return result == kEarly ? 0 : result; // it may end for no reason
      }
      mark = Mark::kAsked;
      answered.fetch_add(1, std::memory_order_relaxed);
      return ETIMEDOUT;
    case Mark::kAsked:
      mark = Mark::kAsk;
      return wait_first(cond, mutex, until);
    default:
      return next_wait(cond, mutex, until);
  }
}

int signal(pthread_cond_t* cond) {
  if (cond == gil_cond.load(std::memory_order_relaxed)) {
    balance.released(Waiter::first != nullptr);
    if (Waiter::first) {
      return next_signal(&Waiter::first->woken);
    }
  }
  return next_signal(cond);
}

// The threads that waited stayed in the parent.
const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { Waiter::first = nullptr; });

// The entry points that end a window. GIL: as the function of the same name has
// it. No noexcept: at interpreter exit these end the thread by unwinding it.

void restore_thread(PyThreadState* state) {
  if (!thread_has_priority()) {
    return next_restore_thread(state);
  }
  const Asks asks;
  next_restore_thread(state);
}

void acquire_thread(PyThreadState* state) {
  if (!thread_has_priority()) {
    return next_acquire_thread(state);
  }
  const Asks asks;
  next_acquire_thread(state);
}

PyGILState_STATE ensure() {
  if (!thread_has_priority()) {
    return next_ensure();
  }
  const Asks asks;
  return next_ensure();
}

redirect::Client& wait_client = *new redirect::Client(
    redirect::Client::Place::kInner,
    {
        redirect::hook("pthread_cond_timedwait", next_wait, &wait, true),
        redirect::hook("pthread_cond_signal", next_signal, &signal, true),
    });

redirect::Client& entry_points = *new redirect::Client(
    redirect::Client::Place::kInner,
    {
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
  wait_client.install();
  if (!redirect::could_look()) {
    wait_client.uninstall();
    return kNoDescriptor;
  }
  if (fork_handler != 0 || own_depth_made != 0 ||
      !wait_client.covers_interpreter("pthread_cond_timedwait") ||
      !wait_client.covers_interpreter("pthread_cond_signal")) {
    wait_client.uninstall();
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
  return thread_has_priority();
}

uint64_t answers() {
  return answered.load(std::memory_order_relaxed);
}

uint64_t owed_waits() {
  return waited_first.load(std::memory_order_relaxed);
}

} // namespace torchgil::priority
