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
// What a thread does, as the two see it, is in gil_state.h. `lock` is written
// under the GIL as a trace begins, and read by all.
#include <Python.h>

#include "trace/gil_events.h"

#include <torchgil/gil.h>
#include "cpython/gil_holder.h"
#include "cpython/gil_lock.h"
#include "os_thread.h"
#include "redirect/redirect.h"
#include "trace/event_log.h"
#include "trace/gil_state.h"

#include <pthread.h>

#include <atomic>

namespace torchgil::gil_events {
namespace {

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

template <typename T>
T* get(const std::atomic<T*>& pointer) {
  return pointer.load(std::memory_order_relaxed);
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
  return begin ? sleepers_on(begin, begin + sizeof(pthread_cond_t))
               : std::vector<int64_t>{};
}

std::vector<std::string> stop() {
  return client.uninstall();
}

void after_fork_in_child() {
  client.uninstall_in_child();
}

} // namespace torchgil::gil_events
