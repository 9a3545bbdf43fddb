// csrc/tracing/culprit.cpp: what Python code a thread is in.
#include "tracing/culprit.h"

#include <fstream>
#include <string>

namespace torchgil {

namespace {

PyThreadState* find_thread_of(
    PyInterpreterState* interpreter, const void* holder) {
  PyThreadState* state = PyInterpreterState_ThreadHead(interpreter);
  while (state != nullptr && state != holder) {
    state = PyThreadState_Next(state);
  }
  return state;
}

/// The thread state at this address, or nullptr where none lives there now.
/// From 3.12 on a sub-interpreter may come and go, and its threads too, while
/// this thread holds the main one's GIL: they cannot be listed, and a thread
/// that holds it as one of another interpreter's is not found.
PyThreadState* find_thread(const void* holder) {
#if PY_VERSION_HEX >= 0x030C0000
  return find_thread_of(PyInterpreterState_Main(), holder);
#else
  PyThreadState* found = nullptr;
  for (PyInterpreterState* interpreter = PyInterpreterState_Head();
       interpreter != nullptr && found == nullptr;
       interpreter = PyInterpreterState_Next(interpreter)) {
    found = find_thread_of(interpreter, holder);
  }
  return found;
#endif
}

/// Its threading.Thread's name, read without running the property; for a
/// thread that Python did not start, what the operating system calls it.
py::object name_of(const Culprit& culprit, const py::dict& threads) {
  const py::int_ ident(culprit.ident);
  if (threads.contains(ident)) {
    return py::getattr(threads[ident], "_name", py::str());
  }
  std::ifstream file(
      "/proc/self/task/" + std::to_string(culprit.native_id) + "/comm");
  std::string name;
  std::getline(file, name);
  return py::str(name);
}

Culprit without_frames(PyThreadState* state, const py::dict& threads) {
  Culprit thread;
  if (state->interp != PyInterpreterState_Main()) {
    // The numbers in there are those of the thread that made the interpreter,
    // whichever is in it now.
    thread.name = py::str("(in a sub-interpreter)");
    return thread;
  }
  thread.ident = state->thread_id;
#if PY_VERSION_HEX >= 0x030B0000
  thread.native_id = state->native_thread_id;
#endif
  thread.name = name_of(thread, threads);
  return thread;
}

NamedThread name(PyThreadState* state, const py::dict& threads) {
  const Culprit thread = without_frames(state, threads);
  return {
      state,
      PyThreadState_GetID(state),
      py::len(thread.name) != 0
          ? thread.name
          : py::str("thread " + std::to_string(thread.ident))};
}

} // namespace

Culprit look_up_culprit(const void* holder, const py::dict& threads) {
  PyThreadState* state = find_thread(holder);
  if (state == nullptr) {
    return Culprit();
  }
  Culprit culprit = without_frames(state, threads);
  auto frame = py::reinterpret_steal<py::object>(
      reinterpret_cast<PyObject*>(PyThreadState_GetFrame(state)));
  while (frame) {
    auto* raw = reinterpret_cast<PyFrameObject*>(frame.ptr());
    auto code = py::reinterpret_steal<py::object>(
        reinterpret_cast<PyObject*>(PyFrame_GetCode(raw)));
    culprit.frames.append(
        py::make_tuple(
            code.attr("co_filename"),
            PyFrame_GetLineNumber(raw),
            code.attr("co_name")));
    frame = py::reinterpret_steal<py::object>(
        reinterpret_cast<PyObject*>(PyFrame_GetBack(raw)));
  }
  culprit.frames.attr("reverse")();
  return culprit;
}

NamedThread named_thread(const void* address, const py::dict& threads) {
  PyThreadState* state = find_thread(address);
  return state != nullptr ? name(state, threads) : NamedThread{};
}

std::vector<NamedThread> named_threads(const py::dict& threads) {
  std::vector<NamedThread> found;
  PyThreadState* state =
      PyInterpreterState_ThreadHead(PyInterpreterState_Main());
  for (; state != nullptr; state = PyThreadState_Next(state)) {
    found.push_back(name(state, threads));
  }
  return found;
}

} // namespace torchgil
