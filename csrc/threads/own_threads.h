// csrc/threads/own_threads.h: a thread keeps the number of intra-op threads
// that it set for itself.
#pragma once

namespace torchgil::threads {

/// From now on no parallel region takes the calling thread's own number away.
///
/// at::parallel_for is compiled into each library that uses it, with a flag per
/// thread of its own: a library's first parallel region in a thread sets the
/// thread's number to the process's default, whatever it was set to before.
/// GIL: held or not; given up meanwhile. The first call reads the tables of all
/// that is loaded.
void keep_own_threads();

} // namespace torchgil::threads
