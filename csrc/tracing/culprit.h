// csrc/tracing/culprit.h: what Python code a thread is in.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace torchgil {

namespace py = pybind11;

struct Culprit {
  uint64_t ident = 0;     // of threading.Thread.ident; 0 when the thread ended
  uint64_t native_id = 0; // the OS's thread id; 0 when not known
  py::object name = py::str(); // as threading has it, or the OS
  /// (filename, lineno, function) of each frame, outermost first.
  py::list frames;
};

/// Before 3.12 any allocation may start a collection, which runs finalizers,
/// which are Python code: the GIL could change hands in the middle. None is
/// started while one of these lives. GIL: held throughout.
class CollectionPaused {
 public:
  CollectionPaused() : was_enabled_(PyGC_Disable()) {}
  ~CollectionPaused() {
    if (was_enabled_) {
      PyGC_Enable();
    }
  }
  CollectionPaused(const CollectionPaused&) = delete;
  CollectionPaused& operator=(const CollectionPaused&) = delete;

 private:
  int was_enabled_;
};

/// The name of the thread whose PyThreadState has this address, as threading
/// has it, or the OS; None where it has ended. GIL: held throughout.
py::object name_of_thread(const void* holder, const py::dict& threads);

/// Looks up the thread whose PyThreadState has this address; `threads` are
/// threading's own, by ident. Runs no Python code, so with collections paused
/// no thread moves on meanwhile. GIL: held throughout.
Culprit look_up_culprit(const void* holder, const py::dict& threads);

} // namespace torchgil
