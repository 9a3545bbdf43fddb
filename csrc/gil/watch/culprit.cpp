// csrc/gil/watch/culprit.cpp: what Python code a thread is in.
#include "watch/culprit.h"

#include "cpython/thread_states.h"

#include <unistd.h>

#include <string>

#include "os_thread.h"

namespace torchgil {

namespace {

/// Its threading.Thread's name and number, read without running the properties.
/// Neither of a thread that Python did not start.
void name(Culprit& culprit, const py::dict& threads) {
  const py::int_ ident(culprit.ident);
  if (!threads.contains(ident)) {
    return;
  }
  const py::object thread = threads[ident];
  culprit.name = py::getattr(thread, "_name", py::str());
  const py::object number = py::getattr(thread, "_native_id", py::none());
  if (culprit.native_id == 0 && PyLong_CheckExact(number.ptr())) {
    // Before 3.11. The thread that forks has its old number in the child.
    culprit.native_id = PyLong_AsUnsignedLongMask(number.ptr());
    if (!system_call_of(folder_of(culprit.native_id)).known &&
        system_call_of(folder_of(getpid())).known) {
      culprit.native_id = getpid();
    }
  }
}

/// As Python knows it.
Culprit in_python(PyThreadState* state, const py::dict& threads) {
  Culprit thread;
  if (state->interp != PyInterpreterState_Main()) {
    // The numbers in there are those of the thread that made the interpreter,
    // whichever is in it now.
    thread.name = py::str("(in a sub-interpreter)");
    return thread;
  }
  thread.ident = state->thread_id;
  thread.native_id = native_id_of(state);
  name(thread, threads);
  return thread;
}

/// With the operating system's name, where Python has none.
Culprit without_frames(PyThreadState* state, const py::dict& threads) {
  Culprit thread = in_python(state, threads);
  if (py::len(thread.name) == 0) {
    thread.name = py::str(system_name_of(folder_of(thread.native_id)));
  }
  return thread;
}

NamedThread named(PyThreadState* state, const py::dict& threads) {
  const Culprit thread = without_frames(state, threads);
  return {
      state,
      PyThreadState_GetID(state),
      py::len(thread.name) != 0
          ? thread.name
          : py::str("thread " + std::to_string(thread.ident))};
}

} // namespace

std::string in_utf8(const py::object& name) {
  const auto bytes = py::reinterpret_steal<py::object>(
      PyUnicode_Check(name.ptr())
          ? PyUnicode_AsEncodedString(name.ptr(), "utf-8", "surrogatepass")
          : nullptr);
  if (!bytes) {
    PyErr_Clear(); // no memory, or a name that is no str
    return "";
  }
  return {
      PyBytes_AS_STRING(bytes.ptr()),
      static_cast<size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

py::str from_utf8(const std::string& text) {
  return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
      text.data(), static_cast<Py_ssize_t>(text.size()), "surrogatepass"));
}

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
  return state != nullptr ? named(state, threads) : NamedThread{};
}

KnownThreads::Threads known_threads(const py::dict& threads) {
  KnownThreads::Threads found;
  PyThreadState* state =
      PyInterpreterState_ThreadHead(PyInterpreterState_Main());
  for (; state != nullptr; state = PyThreadState_Next(state)) {
    const Culprit thread = in_python(state, threads);
    found[state] = {
        state, thread.ident, thread.native_id, in_utf8(thread.name)};
  }
  return found;
}

KnownThread this_thread(const py::object& name) {
  PyThreadState* state = PyThreadState_Get();
  return {state, state->thread_id, this_native_id(), in_utf8(name)};
}

std::vector<NamedThread> named_threads(const py::dict& threads) {
  std::vector<NamedThread> found;
  PyThreadState* state =
      PyInterpreterState_ThreadHead(PyInterpreterState_Main());
  for (; state != nullptr; state = PyThreadState_Next(state)) {
    found.push_back(named(state, threads));
  }
  return found;
}

} // namespace torchgil
