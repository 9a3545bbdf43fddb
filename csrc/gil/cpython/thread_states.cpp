// csrc/gil/cpython/thread_states.cpp: see thread_states.h.
#include "cpython/thread_states.h"

#include "collections/paused.h"
#include "own_memory.h"

namespace torchgil {

namespace py = pybind11;

namespace {

PyThreadState* find_thread_of(
    PyInterpreterState* interpreter, const void* address) {
  PyThreadState* state = PyInterpreterState_ThreadHead(interpreter);
  while (state != nullptr && state != address) {
    state = PyThreadState_Next(state);
  }
  return state;
}

} // namespace

PyThreadState* find_thread(const void* address) {
#if PY_VERSION_HEX >= 0x030C0000
  return find_thread_of(PyInterpreterState_Main(), address);
#else
  PyThreadState* found = nullptr;
  for (PyInterpreterState* interpreter = PyInterpreterState_Head();
       interpreter != nullptr && found == nullptr;
       interpreter = PyInterpreterState_Next(interpreter)) {
    found = find_thread_of(interpreter, address);
  }
  return found;
#endif
}

uint64_t native_id_of([[maybe_unused]] const PyThreadState* state) {
#if PY_VERSION_HEX >= 0x030B0000
  return state->native_thread_id;
#else
  return 0;
#endif
}

uint64_t native_id_at([[maybe_unused]] const void* state) {
  unsigned long id = 0;
#if PY_VERSION_HEX >= 0x030B0000
  const auto* at = static_cast<const char*>(state);
  if (is_of_sub_interpreter(state) ||
      !read_memory(at + offsetof(PyThreadState, native_thread_id), id)) {
    return 0;
  }
#endif
  return id;
}

bool can_be_of(
    [[maybe_unused]] const void* state, [[maybe_unused]] uint64_t native_id) {
#if PY_VERSION_HEX >= 0x030B0000
  const auto* at = static_cast<const char*>(state);
  unsigned long id = 0;
  return !read_memory(at + offsetof(PyThreadState, native_thread_id), id) ||
      id == native_id;
#else
  return true; // nothing there tells
#endif
}

bool is_of_sub_interpreter(const void* state) {
  const auto* at = static_cast<const char*>(state);
  const PyInterpreterState* interpreter = nullptr;
  return read_memory(at + offsetof(PyThreadState, interp), interpreter) &&
      interpreter != PyInterpreterState_Main();
}

const void* state_of_native_thread([[maybe_unused]] uint64_t native_id) {
#if PY_VERSION_HEX >= 0x030B0000
  constexpr int kMostThreads = 100'000; // a list that is no list ends, too
  PyInterpreterState* main = PyInterpreterState_Main();
  const char* state = main == nullptr
      ? nullptr
      : reinterpret_cast<const char*>(PyInterpreterState_ThreadHead(main));
  for (int i = 0; state != nullptr && i < kMostThreads; ++i) {
    unsigned long id = 0;
    const char* next = nullptr;
    if (!read_memory(state + offsetof(PyThreadState, native_thread_id), id) ||
        !read_memory(state + offsetof(PyThreadState, next), next)) {
      return nullptr;
    }
    if (id == native_id) {
      return state;
    }
    state = next;
  }
#endif
  return nullptr;
}

py::set idents_of_threads() {
  const CollectionPaused paused;
#if PY_VERSION_HEX >= 0x030C0000
  py::set idents;
  PyThreadState* state =
      PyInterpreterState_ThreadHead(PyInterpreterState_Main());
  for (; state != nullptr; state = PyThreadState_Next(state)) {
    if (PyFrameObject* frame = PyThreadState_GetFrame(state)) {
      idents.add(py::int_(state->thread_id));
      Py_DECREF(frame);
    }
  }
  return idents;
#else
  const auto frames =
      py::reinterpret_borrow<py::object>(PySys_GetObject("_current_frames"));
  return py::set(frames());
#endif
}

} // namespace torchgil
