// csrc/gil/cpython/thread_states.h: the thread behind a PyThreadState's
// address.
#pragma once

#include <Python.h>

#include <pybind11/pybind11.h>

#include <cstdint>

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

/// The same, of a state that may be gone: then 0 or anything. 0 as well of a
/// sub-interpreter's, which has the number of the thread that made it,
/// whichever is in it now. GIL: not needed.
uint64_t native_id_at(const void* state);

/// Whether the state can still be that of the thread with this number: its
/// memory may be another's by now. GIL: not needed.
bool can_be_of(const void* state, uint64_t native_id);

/// Whether it is a sub-interpreter's, as far as it can be read. GIL: not
/// needed.
bool is_of_sub_interpreter(const void* state);

/// The state of the main interpreter's thread with this number of the operating
/// system, or nullptr: none is found before 3.11. The list is copied word by
/// word from where it lies, for nobody can ask for its lock while the GIL is
/// stuck. GIL: not needed.
const void* state_of_native_thread(uint64_t native_id);

/// The threads that are in Python code, those that Python did not start among
/// them, by threading.Thread.ident. GIL: held throughout.
///
/// Up to 3.11 the interpreter's own list, sys._current_frames(): a state is
/// there in the list before it is filled in, and only the interpreter can take
/// the lock of it. From 3.12 on that function makes frames of other
/// interpreters' threads, too, with this one's allocator, and the process is
/// aborted when the other frees them; and there a state is filled in first, so
/// that the list of the main interpreter can be read here.
///
/// No garbage is collected meanwhile: the interpreter makes the frames with
/// its lock of all threads in its hand (python/cpython#106883). A tensor's end
/// would release the GIL, and who gets it may want that lock. Done in Python,
/// Ctrl-C or another thread could come between the pause and its end.
pybind11::set idents_of_threads();

} // namespace torchgil
