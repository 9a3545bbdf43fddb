// csrc/gil/cpython/thread_states.h: the thread behind a PyThreadState's
// address.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

namespace torchgil {

/// The thread state at this address, or nullptr where none lives there now.
/// From 3.12 on a sub-interpreter may come and go, and its threads too, while
/// this thread holds the main one's GIL: they cannot be listed, and a thread
/// that holds it as one of another interpreter's is not found.
/// GIL: held throughout.
PyThreadState* find_thread(const void* address);

/// The operating system's number of its thread; 0 before 3.11, which does not
/// keep it. GIL: held.
uint64_t native_id_of(const PyThreadState* state);

/// The main interpreter's threads that are in Python code, by
/// threading.Thread.ident. GIL: held throughout.
///
/// Not sys._current_frames(): from 3.12 on that makes frames of other
/// interpreters' threads too, with this one's allocator, and the process is
/// aborted when the other frees them. And it makes them with the interpreter's
/// lock of all threads in its hand (python/cpython#106883): were garbage
/// collected there, a tensor's end would release the GIL, and who gets it may
/// want that lock.
std::vector<uint64_t> idents_of_threads();

} // namespace torchgil
