// csrc/gil/trace/gil_state.h: what each thread does to the GIL, and the events
// of it.
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
// trace does. `acquires` is written by whoever holds the GIL.
#pragma once

#include "initial_exec.h"
#include "trace/event_log.h"

#include <atomic>
#include <cstdint>

namespace torchgil::gil_events {

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
extern constinit thread_local Seen seen_of_this_thread;

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

/// Written by whoever holds the GIL.
extern std::atomic<uint64_t> acquires;

/// What the calling thread has done so far. 0.4 us.
struct Usage {
  int64_t on_core_us = 0;
  int64_t sleeps = 0;
};

Usage usage();

/// An entry point, or the lock, is about to let the GIL go.
void note_release(EventKind kind, GilState next);

/// An entry point asks for the GIL.
void note_request();

/// The thread has the GIL. GIL: held.
void note_acquire();

/// The interpreter asks for the GIL: after a window that passed no entry point,
/// or because it was forced to switch, and then it asks again at once.
void note_request_by_lock();

} // namespace torchgil::gil_events
