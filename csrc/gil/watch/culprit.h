// csrc/gil/watch/culprit.h: what Python code a thread is in.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "watch/known_threads.h"

namespace torchgil {

namespace py = pybind11;

struct Culprit {
  uint64_t ident = 0;     // of threading.Thread.ident; 0 when the thread ended
  uint64_t native_id = 0; // the OS's thread id; 0 when not known
  py::object name = py::str(); // as threading has it, or the OS
  /// (filename, lineno, function) of each frame, outermost first.
  py::list frames;
};

/// A str as UTF-8, half surrogate pairs included; "" of what is no str. GIL:
/// held.
std::string in_utf8(const py::object& name);

/// And back. GIL: held.
py::str from_utf8(const std::string& text);

/// A thread's name, as threading has it, or the OS.
struct NamedThread {
  const void* state = nullptr; // its PyThreadState's address
  uint64_t id = 0;             // and that one's number; 0: no such thread
  py::object name;
};

/// The thread whose PyThreadState has this address. GIL: held throughout.
NamedThread named_thread(const void* address, const py::dict& threads);

/// All threads of the main interpreter. GIL: held throughout.
std::vector<NamedThread> named_threads(const py::dict& threads);

/// All threads of the main interpreter, without their frames, and without a
/// name where Python has none: to ask the system takes 10 us for each thread.
/// GIL: held throughout.
KnownThreads::Threads known_threads(const py::dict& threads);

/// The calling thread, which has this name. GIL: held throughout.
KnownThread this_thread(const py::object& name);

/// Looks up the thread whose PyThreadState has this address; `threads` are
/// threading's own, by ident. Runs no Python code, so with collections paused
/// no thread moves on meanwhile. GIL: held throughout.
Culprit look_up_culprit(const void* holder, const py::dict& threads);

} // namespace torchgil
