// torchgil/gil.h: the one header that touches the GIL.
//
// Header-only, C++17, for any extension that uses pybind11. Its names are
// hidden in the object that includes it: two extensions that were built with
// different torchgil versions do not meet.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#pragma GCC visibility push(hidden)

namespace torchgil {

/// Whether the calling thread holds the GIL of the interpreter it is in. Any
/// thread may ask, at any time.
///
/// PyGILState_Check() does not tell: once a sub-interpreter was made it always
/// answers 1. Since 3.12 the current thread state is each thread's own, and
/// there is one exactly while the thread holds its interpreter's GIL. Before,
/// there is one for the process, that of the thread which holds the only GIL;
/// it is compared with the state that this thread was given first. A thread
/// that has since gone into a sub-interpreter, where torch cannot be imported,
/// holds the GIL with another state, and the answer is no.
inline bool gil_held() {
#if PY_VERSION_HEX >= 0x030D0000
  return PyThreadState_GetUnchecked() != nullptr;
#elif PY_VERSION_HEX >= 0x030C0000
  return _PyThreadState_UncheckedGet() != nullptr;
#else
  const PyThreadState* current = _PyThreadState_UncheckedGet();
  return current != nullptr && current == PyGILState_GetThisThreadState();
#endif
}

/// Whether the interpreter has begun to shut down: from then on a thread that
/// asks for the GIL never gets it.
inline bool interpreter_is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

/// Stops the calling thread for good, without the GIL, while the process ends.
[[noreturn]] inline void park_for_ever() {
  while (true) {
    ::pause();
  }
}

/// Takes the GIL with `state`, or does not return: the one way to ask for it
/// in C++ code that may run while the interpreter shuts down.
///
/// Once that began, take_gil() in CPython gives the GIL to no thread but the
/// one that shuts the interpreter down. Before 3.14 it ends every other thread
/// with pthread_exit(), which unwinds the stack: a destructor on it, or a
/// noexcept function, ends the process with "terminate called without an
/// active exception". It may do so when the thread asks, while it waits, and
/// after it was given the GIL. The thread is parked instead, wherever that
/// happens, as 3.14 itself does.
///
/// `shuts_down`: the caller is the thread that shuts the interpreter down.
/// GIL: not held on entry, held on return.
inline void take_gil(PyThreadState* state, bool shuts_down = false) noexcept {
  if (!shuts_down && interpreter_is_finalizing()) {
    park_for_ever();
  }
  try {
    PyEval_RestoreThread(state);
  } catch (...) { // the unwinding; it must not end here, and never does
    park_for_ever();
  }
}

/// The release window of every `released` call: the GIL is released while one
/// lives. The creator must hold the GIL.
///
/// It is py::gil_scoped_release, but for a thread that cannot get the GIL back
/// because the interpreter shuts down: that is parked; see take_gil(). Who
/// holds the GIL after the shut-down began can only be the thread that does
/// it, and that one gets it back.
class ReleaseWindow {
 public:
  ReleaseWindow()
      : shuts_down_(interpreter_is_finalizing()), state_(PyEval_SaveThread()) {}
  ReleaseWindow(const ReleaseWindow&) = delete;
  ReleaseWindow& operator=(const ReleaseWindow&) = delete;
  ReleaseWindow(ReleaseWindow&&) = delete;
  ReleaseWindow& operator=(ReleaseWindow&&) = delete;

  ~ReleaseWindow() {
    take_gil(state_, shuts_down_);
  }

 private:
  bool shuts_down_; // first: asked while the GIL is held
  PyThreadState* state_;
};

} // namespace torchgil

#pragma GCC visibility pop
