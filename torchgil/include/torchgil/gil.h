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

/// Whether the calling thread holds the GIL. Any thread may ask, at any time.
inline bool gil_held() {
  return PyGILState_Check() == 1;
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

/// The release window of every `released` call: the GIL is released while one
/// lives. The creator must hold the GIL.
///
/// It is py::gil_scoped_release with the way out mended. A daemon thread
/// whose op ends after the interpreter began to shut down never gets the GIL:
/// before 3.14 CPython answers with pthread_exit(), whose unwinding meets a
/// destructor and ends the process with "terminate called without an active
/// exception". Such a thread is parked instead, as CPython 3.14 itself does.
/// The one thread that still gets it is the one that shuts the interpreter
/// down: who holds the GIL after that began can be no other.
class ReleaseWindow {
 public:
  ReleaseWindow()
      : state_(PyThreadState_Get()), finalizer_(interpreter_is_finalizing()) {}
  ReleaseWindow(const ReleaseWindow&) = delete;
  ReleaseWindow& operator=(const ReleaseWindow&) = delete;
  ReleaseWindow(ReleaseWindow&&) = delete;
  ReleaseWindow& operator=(ReleaseWindow&&) = delete;

  ~ReleaseWindow() {
    if (!finalizer_ && interpreter_is_finalizing()) {
      park_for_ever();
    }
    released_.disarm(); // its own way back cannot be left by unwinding
    try {
      PyEval_RestoreThread(state_);
    } catch (...) { // the shut-down began while this thread waited here
      park_for_ever();
    }
  }

 private:
  // Both before the GIL is released.
  PyThreadState* state_;
  bool finalizer_;
  pybind11::gil_scoped_release released_;
};

} // namespace torchgil

#pragma GCC visibility pop
