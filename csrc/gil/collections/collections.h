// csrc/gil/collections/collections.h: when garbage is collected, and in which
// thread.
//
// The interpreter calls each function in gc.callbacks as a collection starts
// and as it ends, in the thread that collects, with the GIL held; one in C of
// ours stands there while anybody wants to know. At most one collection runs
// at a time. Finalizers, tensors that are freed and other callbacks may let the
// GIL go in the middle, so that "in a collection" is said of a thread and not
// of the GIL. Of other interpreters in this process nothing is seen.
#pragma once

#include <cstdint>

namespace torchgil::collections {

/// Collections are seen while one of these lives, at most one with a witness.
/// GIL: held as it is made and as it goes.
class Client {
 public:
  /// What is told of each start and end, besides what is kept here. Called with
  /// the GIL, by the thread that collects; must not run Python code.
  using Witness = void (*)(int64_t time_ns, int generation, bool starts);

  explicit Client(Witness witness = nullptr);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

 private:
  const uint64_t made_in_; // the process, as it counts forks
  const bool has_witness_;
};

/// Whether the program has left our function in gc.callbacks. GIL: held.
bool still_seen();

/// Puts it back where the program has removed it. GIL: held.
void see_again();

/// The PyThreadState of the thread that is in a collection now, or nullptr.
/// GIL: not needed.
const void* collecting() noexcept;

/// Collections of 0.1 ms and more, of which the last 256 are known.
struct Found {
  int count = 0;
  int64_t ns = 0; // of all of them
  int64_t longest_ns = 0;
  int generation = -1; // of the longest
};

/// What of a stretch of time one thread spent in collections. GIL: held.
Found within(const void* thread_state, int64_t from_ns, int64_t until_ns);

/// As the extension is loaded. GIL: held.
void set_up();

} // namespace torchgil::collections
