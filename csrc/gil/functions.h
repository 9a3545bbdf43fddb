// csrc/gil/functions.h: what the half that knows torch asks of this one.
//
// torchgil._torch finds this table in the capsule torchgil._gil.functions as it
// is loaded, and checks its version. It is the only arrow between the halves:
// no variable of one is seen by the other.
#pragma once

#include <cstdint>

namespace torchgil {

struct GilFunctions {
  /// Changes with anything below.
  static constexpr uint32_t kVersion = 1;
  uint32_t version;

  /// Whoever watches torch's ops: `start` is called when a trace that wants
  /// them begins, at once where one runs, and `stop` when it ends, also where
  /// it did not begin. GIL: held, in those two as well.
  void (*set_op_source)(void (*start)(), void (*stop)());

  /// An op starts or ends on the calling thread; nothing where no trace runs.
  /// `is_op`: or else a scope of the user's. `name`: of an asynchronous op,
  /// which may end on another thread than it began on, else null. Neither takes
  /// a lock nor allocates. GIL: held or not.
  void (*op_starts)(const char* name, bool is_op);
  void (*op_ends)(const char* name);

  /// Around what takes the GIL back for a window with priority.
  void (*begin_asking)();
  void (*end_asking)();

  /// From now on torch's default takes no number of intra-op threads away that
  /// the calling thread set for itself (threads/own_threads.h).
  /// `init_num_threads`: at::init_num_threads. GIL: held on entry and return,
  /// given up in between.
  void (*keep_own_threads)(void (*init_num_threads)());
};

inline constexpr char kGilFunctionsCapsule[] = "torchgil._gil.functions";

} // namespace torchgil
