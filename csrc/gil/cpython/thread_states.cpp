// csrc/gil/cpython/thread_states.cpp: see thread_states.h.
#include "cpython/thread_states.h"

#include "collections/paused.h"

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
