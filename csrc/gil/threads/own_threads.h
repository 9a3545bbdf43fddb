// csrc/gil/threads/own_threads.h: a thread keeps the number of intra-op threads
// that it set for itself.
#pragma once

namespace torchgil::threads {

/// From now on no parallel region takes the calling thread's own number away.
///
/// at::parallel_for is compiled into each library that uses it, with a flag per
/// thread of its own: a library's first parallel region in a thread sets the
/// thread's number to the process's default, whatever it was set to before.
///
/// `init_num_threads`: at::init_num_threads, which this half does not know. The
/// first call reads the tables of all that is loaded. GIL: held on entry and
/// return, given up in between.
void keep_own_threads(void (*init_num_threads)());

} // namespace torchgil::threads
