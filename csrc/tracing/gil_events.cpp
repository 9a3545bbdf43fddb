// csrc/tracing/gil_events.cpp: every release, request and acquire of the GIL.
//
// Two witnesses report to one state machine per thread. The entry points
// (PyEval_SaveThread and its kin) are redirected in all loaded objects: they
// tell a release window from anything else. The lock inside the interpreter,
// a mutex and two condition variables, is watched through the interpreter's
// own calls of pthread_*. It shows what never passes an entry point, that is
// forced switches, threads that end, and the direct calls inside a static
// `python`. Each transition is recorded by whoever reports it first, so that
// nested and doubled reports need no special case.
#include <Python.h>

#include "tracing/gil_events.h"

#include "redirect/redirect.h"
#include "tracing/event_log.h"
#include "tracing/gil_lock.h"

#include <pthread.h>

#include <atomic>

namespace torchgil::gil_events {
namespace {

// Where the interpreter's own calls bypass its table (a static `python`), a
// forced switch looks like a window of its own, but for the time between
// letting go and asking again. Beside a busy thread 60 of 60 forced switches
// took less than this, and of 180,000 reads of one byte 9 were taken for one.
constexpr int64_t kSwitchGapNs = 3'000;

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
std::atomic<bool> interpreter_calls_seen{false};
std::atomic<uint64_t> acquires{0}; // counted where that tells forced switches

template <typename T>
T* get(const std::atomic<T*>& pointer) {
  return pointer.load(std::memory_order_relaxed);
}

void note_release(EventKind kind, GilState next) {
  const int64_t now = now_ns(); // before: no thread can acquire earlier
  WriteSection r;
  if (r && (r->gil == GilState::kHolds || r->gil == GilState::kUnknown)) {
    r->push(now, kind);
    r->gil = next;
  }
}

void note_request() {
  WriteSection r;
  if (r && r->gil != GilState::kHolds && r->gil != GilState::kAsks) {
    r->push(now_ns(), EventKind::kRequest);
    r->gil = GilState::kAsks;
  }
}

void note_acquire() {
  WriteSection r;
  if (r && r->gil != GilState::kHolds) {
    r->push(now_ns(), EventKind::kAcquire);
    r->gil = GilState::kHolds;
    if (!interpreter_calls_seen) {
      ++acquires;
    }
  }
}

// The interpreter asks for the GIL: after a window of its own, or because it
// was forced to switch, and then the release before was no window. Forced, it
// finds that another thread has had the GIL, and asks again at once.
void note_request_by_lock() {
  WriteSection r;
  if (!r || r->gil == GilState::kHolds || r->gil == GilState::kReleasing ||
      r->gil == GilState::kAsks) {
    return;
  }
  const int64_t now = now_ns();
  if (r->gil == GilState::kOutByLock && !interpreter_calls_seen &&
      r->acquires != acquires && now - r->let_go_ns < kSwitchGapNs) {
    r->change_last(EventKind::kRelease, EventKind::kForcedRelease);
  }
  r->push(now, EventKind::kRequest);
  r->gil = GilState::kAsks;
}

// The entry points. GIL: as the function of the same name has it.

PyThreadState* save_thread() {
  note_release(EventKind::kRelease, GilState::kReleasing);
  return next_save_thread();
}

void release_thread(PyThreadState* state) {
  note_release(EventKind::kRelease, GilState::kReleasing);
  next_release_thread(state);
}

// pybind11's gil_scoped_acquire ends with this on a thread of its own making.
void delete_current() {
  note_release(EventKind::kRelease, GilState::kReleasing);
  next_delete_current();
}

// No noexcept: at interpreter exit these end the thread by unwinding it.
void restore_thread(PyThreadState* state) {
  note_request();
  next_restore_thread(state);
  note_acquire();
}

void acquire_thread(PyThreadState* state) {
  note_request();
  next_acquire_thread(state);
  note_acquire();
}

PyGILState_STATE ensure() {
  if (!event_log::running() || PyGILState_Check()) {
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
    WriteSection r;
    if (r && (r->gil == GilState::kHolds || r->gil == GilState::kUnknown)) {
      r->push(now_ns(), EventKind::kRelease);
    } else if (r && r->gil == GilState::kOutByLock) {
      r->change_last(EventKind::kForcedRelease, EventKind::kRelease);
    }
    if (r) {
      r->gil = GilState::kOut;
    }
  }
}

// The lock. GIL: held or not, as the interpreter has it.

int mutex_lock(pthread_mutex_t* mutex) {
  if (mutex == get(lock.mutex)) {
    note_request_by_lock();
  } else {
    gil_lock::overhear_lock(mutex);
  }
  return next_mutex_lock(mutex);
}

int mutex_unlock(pthread_mutex_t* mutex) {
  const int result = next_mutex_unlock(mutex);
  if ((mutex == get(lock.mutex) || mutex == get(lock.switch_mutex)) &&
      !interpreter_calls_seen) {
    WriteSection r;
    if (r && r->gil == GilState::kOutByLock) {
      r->let_go_ns = now_ns(); // the last of these is the end of the release
    }
  }
  return result;
}

// Called with the GIL's mutex held: the order of these stamps is the order in
// which the GIL changed hands.
int cond_signal(pthread_cond_t* cond) {
  if (cond == get(lock.cond)) {
    WriteSection r;
    if (r && r->gil == GilState::kHolds) {
      // What did not come by an entry point, where they are all seen, is a
      // forced switch, or the end of the thread.
      r->push(
          now_ns(),
          interpreter_calls_seen ? EventKind::kForcedRelease
                                 : EventKind::kRelease);
      r->gil = GilState::kOutByLock;
      r->acquires = acquires;
    } else if (r && r->gil == GilState::kReleasing) {
      r->gil = GilState::kOut;
    }
  } else if (cond == get(lock.switch_cond)) {
    note_acquire();
  } else {
    gil_lock::overhear_signal(cond);
  }
  return next_cond_signal(cond);
}

redirect::Client& client() {
  using redirect::hook;
  static redirect::Client& client = *new redirect::Client(
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
  return client;
}

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
  witnesses.slots = client().install();
  witnesses.entry_points = witnesses.slots > 0;
  interpreter_calls_seen = client().covers_interpreter("PyEval_SaveThread") &&
      client().covers_interpreter("PyEval_RestoreThread");
  static GilLock learned;
  static const bool known = gil_lock::learn(
      learned, next_save_thread.original, next_restore_thread.original);
  witnesses.lock = use_lock && known;
  watch(witnesses.lock ? learned : GilLock{});
  if (!witnesses.lock) {
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
  WriteSection r;
  if (r) {
    r->push(time_ns, EventKind::kAcquire);
    r->gil = GilState::kHolds;
  }
}

std::vector<std::string> stop() {
  return client().uninstall();
}

void after_fork_in_child() {
  client().uninstall_in_child();
}

} // namespace torchgil::gil_events
