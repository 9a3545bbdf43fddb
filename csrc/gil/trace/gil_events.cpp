// csrc/gil/trace/gil_events.cpp: every release, request and acquire of the GIL.
//
// Two witnesses report to one state machine per thread.
//
// The entry points (PyEval_SaveThread and its kin) are redirected in all loaded
// objects. They tell a release window from anything else.
//
// The lock inside the interpreter, a mutex and two condition variables (their
// order of use stands in cpython/gil_lock.cpp), is watched through the
// interpreter's own calls of pthread_*. It shows what never passes an entry
// point: forced switches, threads that end, the direct calls inside a static
// `python`, and machine code that calls an entry point by its address, as
// numba's does.
//
// What a thread does, as the witnesses see it, and what is recorded (in
// capitals):
//
//   kHolds      PyEval_SaveThread begins          RELEASE         kReleasing
//   kHolds      the lock's `cond` is signalled    RELEASE         kOutByLock
//   kReleasing  the lock's `cond` is signalled                    kOut
//   kOut        PyEval_RestoreThread begins,      REQUEST         kAsks
//               or the lock's mutex is taken
//   kOutByLock  PyEval_RestoreThread begins: it   REQUEST         kAsks
//               was a window
//   kOutByLock  the lock's mutex is taken: it     REQUEST         kAsks
//               was a window, or a forced switch;
//               the last RELEASE becomes a
//               FORCED_RELEASE, or one again
//   kAsks       the lock's `switch_cond` is       ACQUIRE         kHolds
//               signalled, or the entry point
//               returns
//   kUnknown    as kHolds for a release, as kOut for a request
//
// Each transition is recorded by whoever reports it first, and from any other
// state nothing happens: so nested and doubled reports need no special case.
//
// Who may do what: a thread's state is its own, in thread-local memory, and is
// read and written within a write section (event_log.h), which ends before the
// trace does. `lock` is written under the GIL as a trace begins, and read by
// all. `acquires` is written by whoever holds the GIL.
#include <Python.h>

#include "trace/gil_events.h"

#include <torchgil/gil.h>
#include "cpython/gil_holder.h"
#include "cpython/gil_lock.h"
#include "initial_exec.h"
#include "redirect/redirect.h"
#include "trace/event_log.h"
#include "trace/futex_waiters.h"

#include <pthread.h>
#include <sys/resource.h>

#include <atomic>

namespace torchgil::gil_events {
namespace {

// What passes no entry point is a window or a forced switch. After a forced
// switch another thread has had the GIL, and the thread asks again at once: it
// has not slept meanwhile, nor used more of a core than this. The time that it
// was ready and had no core says nothing: on two cores with a load of 5, a
// limit on the time by the clock took 6 % of forced switches for windows, this
// one 2 of 6,900.
constexpr int64_t kSwitchUs = 10;

// What is watched of the GIL's lock; null where nothing is. Read on every
// thread.
struct WatchedLock {
  std::atomic<pthread_mutex_t*> mutex{nullptr};
  std::atomic<pthread_cond_t*> cond{nullptr};
  std::atomic<pthread_mutex_t*> switch_mutex{nullptr};
  std::atomic<pthread_cond_t*> switch_cond{nullptr};
};

redirect::Next next_save_thread(&PyEval_SaveThread);
redirect::Next next_restore_thread(&PyEval_RestoreThread);
redirect::Next next_acquire_thread(&PyEval_AcquireThread);
redirect::Next next_release_thread(&PyEval_ReleaseThread);
redirect::Next next_ensure(&PyGILState_Ensure);
redirect::Next next_release(&PyGILState_Release);
redirect::Next next_delete_current(&PyThreadState_DeleteCurrent);
redirect::Next next_mutex_lock(&pthread_mutex_lock);
redirect::Next next_mutex_unlock(&pthread_mutex_unlock);
redirect::Next next_cond_signal(&pthread_cond_signal);

WatchedLock lock;
std::atomic<uint64_t> acquires{0}; // written by whoever holds the GIL

enum class GilState : uint8_t {
  kUnknown, // nothing seen of this thread yet
  kHolds,
  kReleasing, // announced by an entry point; the lock is not yet let go
  kOut,       // in a window
  kOutByLock, // let go past the entry points: a window, or switched out
  kAsks,
};

/// What was last seen of a thread in one trace.
struct Seen {
  uint64_t trace_id = 0;
  GilState gil = GilState::kUnknown;
  int64_t let_go_us = 0; // the thread's own time at a release by the lock
  int64_t sleeps = 0;    // of the thread, until then
  uint64_t acquires = 0; // by all threads, at that release
};

TORCHGIL_INITIAL_EXEC
constinit thread_local Seen seen_of_this_thread;

/// A write section, and what was last seen of its thread.
class Section : public WriteSection {
 public:
  Section() {
    if (*this && seen.trace_id != (*this)->trace_id) {
      seen = {(*this)->trace_id};
    }
  }
  Seen& seen = seen_of_this_thread;
};

// What the calling thread has done so far. 0.4 us.
struct Usage {
  int64_t on_core_us = 0;
  int64_t sleeps = 0;
};

Usage usage() {
#if defined(RUSAGE_THREAD)
  rusage u;
  getrusage(RUSAGE_THREAD, &u);
  return {
      (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1'000'000LL +
          u.ru_utime.tv_usec + u.ru_stime.tv_usec,
      u.ru_nvcsw};
#else
  return {now_ns() / 1000, 0};
#endif
}

template <typename T>
T* get(const std::atomic<T*>& pointer) {
  return pointer.load(std::memory_order_relaxed);
}

void note_release(EventKind kind, GilState next) {
  const int64_t now = now_ns(); // before: no thread can acquire earlier
  Section r;
  if (r &&
      (r.seen.gil == GilState::kHolds || r.seen.gil == GilState::kUnknown)) {
    r->push(now, kind);
    r.seen.gil = next;
  }
}

void note_request() {
  Section r;
  if (r && r.seen.gil != GilState::kHolds && r.seen.gil != GilState::kAsks) {
    if (r.seen.gil == GilState::kOutByLock) {
      // A thread that was switched out does not come this way.
      r->change_last(EventKind::kForcedRelease, EventKind::kRelease);
    }
    r->push(now_ns(), EventKind::kRequest);
    r.seen.gil = GilState::kAsks;
  }
}

void note_acquire() {
  Section r;
  if (r && r.seen.gil != GilState::kHolds) {
    r->push(now_ns(), EventKind::kAcquire);
    r.seen.gil = GilState::kHolds;
    acquires.store(
        acquires.load(std::memory_order_relaxed) + 1,
        std::memory_order_relaxed);
  }
}

// The interpreter asks for the GIL: after a window that passed no entry point,
// or because it was forced to switch, and then it asks again at once.
void note_request_by_lock() {
  Section r;
  if (!r || r.seen.gil == GilState::kHolds ||
      r.seen.gil == GilState::kReleasing || r.seen.gil == GilState::kAsks) {
    return;
  }
  const int64_t now = now_ns();
  if (r.seen.gil == GilState::kOutByLock) {
    bool forced = r.seen.acquires != acquires;
    if (forced) {
      const Usage used = usage();
      forced = used.sleeps == r.seen.sleeps &&
          used.on_core_us - r.seen.let_go_us <= kSwitchUs;
    }
    const EventKind kinds[] = {EventKind::kRelease, EventKind::kForcedRelease};
    r->change_last(kinds[!forced], kinds[forced]);
  }
  r->push(now, EventKind::kRequest);
  r.seen.gil = GilState::kAsks;
}

// The entry points. GIL: as the function of the same name has it. A thread that
// is in an interpreter with a GIL of its own has no event: of the main one's
// lock it is seen when the thread goes there and when it comes back.

PyThreadState* save_thread() {
  if (has_main_gil(PyThreadState_Get())) {
    note_release(EventKind::kRelease, GilState::kReleasing);
  }
  return next_save_thread();
}

void release_thread(PyThreadState* state) {
  if (has_main_gil(state)) {
    note_release(EventKind::kRelease, GilState::kReleasing);
  }
  next_release_thread(state);
}

// pybind11's gil_scoped_acquire ends with this on a thread of its own making.
void delete_current() {
  if (has_main_gil(PyThreadState_Get())) {
    note_release(EventKind::kRelease, GilState::kReleasing);
  }
  next_delete_current();
}

// No noexcept: at interpreter exit these end the thread by unwinding it.
void restore_thread(PyThreadState* state) {
  const bool seen = has_main_gil(state);
  if (seen) {
    note_request();
  }
  next_restore_thread(state);
  if (seen) {
    note_acquire();
  }
}

void acquire_thread(PyThreadState* state) {
  const bool seen = has_main_gil(state);
  if (seen) {
    note_request();
  }
  next_acquire_thread(state);
  if (seen) {
    note_acquire();
  }
}

PyGILState_STATE ensure() {
  if (!event_log::running() || gil_held()) {
    return next_ensure(); // nested: nothing changes hands
  }
  note_request();
  const PyGILState_STATE state = next_ensure();
  note_acquire();
  return state;
}

void release(PyGILState_STATE state) {
  // Its destructors may run Python code and open windows of their own before
  // it lets go, so the stamp is the inner witness's. This one comes last.
  next_release(state);
  if (state == PyGILState_UNLOCKED) {
    Section r;
    if (r &&
        (r.seen.gil == GilState::kHolds || r.seen.gil == GilState::kUnknown)) {
      r->push(now_ns(), EventKind::kRelease);
    } else if (r && r.seen.gil == GilState::kOutByLock) {
      r->change_last(EventKind::kForcedRelease, EventKind::kRelease);
    }
    if (r) {
      r.seen.gil = GilState::kOut;
    }
  }
}

// The lock. GIL: held or not, as the interpreter has it.

int mutex_lock(pthread_mutex_t* mutex) {
  if (mutex == get(lock.mutex)) {
    note_request_by_lock();
  } else if (mutex == get(lock.switch_mutex)) {
    Section r;
    if (r && r.seen.gil == GilState::kOutByLock) {
      // It was asked to give way, and waits until it has. A guess, until it
      // asks again.
      r->change_last(EventKind::kRelease, EventKind::kForcedRelease);
    }
  } else {
    gil_lock::overhear_lock(mutex);
  }
  return next_mutex_lock(mutex);
}

int mutex_unlock(pthread_mutex_t* mutex) {
  const int result = next_mutex_unlock(mutex);
  if (mutex == get(lock.mutex) || mutex == get(lock.switch_mutex)) {
    Section r;
    if (r && r.seen.gil == GilState::kOutByLock) {
      const Usage used = usage(); // the last of these is the release's end
      r.seen.let_go_us = used.on_core_us;
      r.seen.sleeps = used.sleeps;
    }
  }
  return result;
}

// Called with the GIL's mutex held: the order of these stamps is the order in
// which the GIL changed hands.
int cond_signal(pthread_cond_t* cond) {
  if (cond == get(lock.cond)) {
    Section r;
    if (r && r.seen.gil == GilState::kHolds) {
      r->push(now_ns(), EventKind::kRelease);
      r.seen.gil = GilState::kOutByLock;
      r.seen.acquires = acquires;
    } else if (r && r.seen.gil == GilState::kReleasing) {
      r.seen.gil = GilState::kOut;
    }
  } else if (cond == get(lock.switch_cond)) {
    note_acquire();
  } else {
    gil_lock::overhear_signal(cond);
  }
  return next_cond_signal(cond);
}

using redirect::hook;
redirect::Client& client = *new redirect::Client(
    redirect::Client::Place::kOuter,
    {
        hook("PyEval_SaveThread", next_save_thread, &save_thread),
        hook("PyEval_RestoreThread", next_restore_thread, &restore_thread),
        hook("PyEval_AcquireThread", next_acquire_thread, &acquire_thread),
        hook("PyEval_ReleaseThread", next_release_thread, &release_thread),
        hook("PyGILState_Ensure", next_ensure, &ensure),
        hook("PyGILState_Release", next_release, &release),
        hook(
            "PyThreadState_DeleteCurrent",
            next_delete_current,
            &delete_current),
        hook("pthread_mutex_lock", next_mutex_lock, &mutex_lock, true),
        hook("pthread_mutex_unlock", next_mutex_unlock, &mutex_unlock, true),
        hook("pthread_cond_signal", next_cond_signal, &cond_signal, true),
    });

// Where the lock is, once a trace has learned it. GIL: held; one trace begins
// at a time.
enum class Learned { kNotYet, kKnown, kUnknown };
Learned learned = Learned::kNotYet;
GilLock gil_lock_found;

void watch(const GilLock& found) {
  lock.mutex = found.mutex;
  lock.cond = found.cond;
  lock.switch_mutex = found.switch_mutex;
  lock.switch_cond = found.switch_cond;
}

} // namespace

Witnesses start(bool use_lock) {
  Witnesses witnesses;
  if (!redirect::supported()) {
    witnesses.missing =
        "calls cannot be redirected on this platform: the loaded objects are "
        "not ELF for x86-64 or aarch64";
    return witnesses;
  }
  witnesses.slots = client.install();
  witnesses.entry_points = witnesses.slots > 0;
  const bool interpreter_calls_seen =
      client.covers_interpreter("PyEval_SaveThread") &&
      client.covers_interpreter("PyEval_RestoreThread");
  // A child forked amid this learns it anew.
  if (learned == Learned::kNotYet && redirect::could_look()) {
    const bool known = gil_lock::learn(gil_lock_found);
    learned = known ? Learned::kKnown : Learned::kUnknown;
  }
  witnesses.lock = use_lock && learned == Learned::kKnown;
  watch(witnesses.lock ? gil_lock_found : GilLock{});
  if (!redirect::could_look()) {
    witnesses.missing =
        "no file descriptor was free to look at what is loaded, so that calls "
        "were not redirected";
  } else if (!witnesses.lock) {
    witnesses.missing =
        "the lock inside the interpreter is not seen: forced switches are "
        "inferred";
    if (!interpreter_calls_seen) {
      witnesses.missing +=
          ", and releases by the interpreter itself (time.sleep, file reads) "
          "stay unseen";
    }
  }
  return witnesses;
}

void mark_holder(int64_t time_ns) {
  Section r;
  if (r) {
    r->push(time_ns, EventKind::kAcquire);
    r.seen.gil = GilState::kHolds;
  }
}

std::vector<int64_t> waiting() {
  const auto begin = reinterpret_cast<uintptr_t>(get(lock.cond));
  return begin ? futex_waiters(begin, begin + sizeof(pthread_cond_t))
               : std::vector<int64_t>{};
}

std::vector<std::string> stop() {
  return client.uninstall();
}

void after_fork_in_child() {
  client.uninstall_in_child();
}

} // namespace torchgil::gil_events
