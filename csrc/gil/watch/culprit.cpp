// csrc/gil/watch/culprit.cpp: what Python code a thread is in.
#include "watch/culprit.h"

#include "cpython/thread_states.h"

#include <fstream>
#include <string>

namespace torchgil {

namespace {

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
  thread.native_id = native_id_of(state);
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
