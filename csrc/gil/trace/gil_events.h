// csrc/gil/trace/gil_events.h: every release, request and acquire of the GIL.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace torchgil::gil_events {

/// What the trace can see of the GIL here.
struct Witnesses {
  /// Calls of PyEval_SaveThread and its kin, by all loaded objects.
  bool entry_points = false;
  /// The lock inside the interpreter: forced switches, and its own calls.
  bool lock = false;
  /// Slots redirected.
  int slots = 0;
  /// Why a witness is missing; empty if none is.
  std::string missing;
};

/// Redirects the entry points. GIL: held on entry and return; let go while it
/// waits for the loader and, in the process's first trace, to learn where the
/// lock is. `use_lock`
/// false leaves the lock witness out. One thread at a time.
Witnesses start(bool use_lock);

/// The calling thread holds the GIL as the trace starts, at `time_ns`.
void mark_holder(int64_t time_ns);

/// The threads that wait for the GIL at this moment, by the OS's ids, as far as
/// the system tells (Linux) and the lock is watched. 10 us a thread.
std::vector<int64_t> waiting();

/// Puts everything back. Returns the objects whose calls stayed unseen. GIL:
/// held on entry and return; let go in between.
std::vector<std::string> stop();

/// For pthread_atfork: in the child everything is put back.
void after_fork_in_child();

} // namespace torchgil::gil_events
