// csrc/tracing/gil_holder.h: which thread holds the GIL, read without it.
#pragma once

#include <cstdint>

namespace torchgil {

/// Whether this interpreter lets `gil_holder` answer. False on free-threaded
/// builds and on Python versions whose layout is not known here.
bool gil_holder_known() noexcept;

/// The `PyThreadState*` that holds the main interpreter's GIL at this moment,
/// or nullptr when nobody does. An address to compare, never to follow: its
/// thread may end at any time. Costs one or two loads.
/// GIL: not needed.
const void* gil_holder() noexcept;

/// How often the GIL went to another thread than had it before. So where two
/// looks find the same number, no other thread had it in between.
/// GIL: not needed.
uint64_t gil_switches() noexcept;

} // namespace torchgil
