// csrc/gil/cpython/gil_holder.h: which thread holds the GIL, read without it.
#pragma once

#include <cstdint>

typedef struct _ts PyThreadState; // NOLINT: as Python.h has it

// "The GIL" is the main interpreter's everywhere in csrc/gil, for that is
// the only one that torch can be imported in. Before 3.12 all interpreters
// share it. From 3.12 on a sub-interpreter may have one of its own, and then
// its threads are none of ours while they are in it.

namespace torchgil {

/// Whether this interpreter lets `gil_holder` answer. False on free-threaded
/// builds and on Python versions whose layout is not known here.
bool gil_holder_known() noexcept;

/// The `PyThreadState*` that holds the main interpreter's GIL at this moment,
/// or nullptr when nobody does. An address to compare, never to follow: its
/// thread may end at any time. Costs one or two loads.
/// GIL: not needed.
const void* gil_holder() noexcept;

/// Whether the GIL that a thread holds with this state is the main
/// interpreter's. GIL: held, or `state` is the calling thread's.
bool has_main_gil(const PyThreadState* state) noexcept;

/// How often the GIL went to another thread than had it before. So where two
/// looks find the same number, no other thread had it in between.
/// GIL: not needed.
uint64_t gil_switches() noexcept;

/// Where the GIL itself lies: its lock, and what its waiters sleep on.
struct GilMemory {
  uintptr_t begin = 0;
  uintptr_t end = 0;
};

/// GIL: not needed.
GilMemory gil_memory() noexcept;

} // namespace torchgil
