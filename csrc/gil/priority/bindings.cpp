// csrc/gil/priority/bindings.cpp: what torchgil/_priority.py needs from C++.
#include <pybind11/pybind11.h>

#include "priority/priority.h"
#include "priority/turns.h"

#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace torchgil {
namespace {

/// What gil_priority() returns, but for being a decorator: the blocks that it
/// has open, each with the thread that entered it. GIL: held, but where a
/// thread's first block gives it up.
///
/// A type of the interpreter's own: with one of pybind11's a block takes three
/// times as long.
struct Blocks {
  PyObject_HEAD std::vector<std::pair<std::thread::id, priority::Depth>> open;
};

PyObject* make(PyTypeObject* type, PyObject*, PyObject*) {
  auto* self = reinterpret_cast<Blocks*>(type->tp_alloc(type, 0));
  if (self) {
    std::construct_at(&self->open);
  }
  return reinterpret_cast<PyObject*>(self);
}

void destroy(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  auto& open = reinterpret_cast<Blocks*>(self)->open;
  for (const auto& block : open) {
    priority::leave(block.second); // nobody can any more
  }
  std::destroy_at(&open);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* enter(PyObject* self, PyObject*) {
  try {
    // First, for it may give the GIL up: then another thread may enter, too.
    priority::Depth depth = priority::enter();
    try {
      reinterpret_cast<Blocks*>(self)->open.emplace_back(
          std::this_thread::get_id(), depth);
    } catch (...) {
      priority::leave(depth);
      throw;
    }
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_NONE;
}

// This thread's last one; any, where a generator ends on another thread than
// it began on.
PyObject* leave(PyObject* self, PyObject* const*, Py_ssize_t) {
  auto& open = reinterpret_cast<Blocks*>(self)->open;
  if (open.empty()) {
    PyErr_SetString(PyExc_RuntimeError, "gil_priority: no block is open");
    return nullptr;
  }
  const auto here = std::this_thread::get_id();
  auto block = open.end() - 1;
  for (auto at = open.rbegin(); at != open.rend(); ++at) {
    if (at->first == here) {
      block = at.base() - 1;
      break;
    }
  }
  priority::leave(block->second);
  open.erase(block);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"__enter__", enter, METH_NOARGS, nullptr},
    {"__exit__",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(leave)),
     METH_FASTCALL,
     nullptr},
    {}};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_methods, methods},
    {}};

PyType_Spec blocks = {
    "torchgil._gil.PriorityBlocks",
    sizeof(Blocks),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    slots};

} // namespace

void register_priority(py::module_& m) {
  m.attr("PriorityBlocks") =
      py::reinterpret_steal<py::object>(PyType_FromSpec(&blocks));
  m.def("priority_unavailable", &priority::redirect_wait);
  m.def("has_priority", &priority::has_priority);
  m.def("priority_sees_own_releases", &priority::sees_own_releases);
  m.def("priority_answers", &priority::answers);
  m.def("priority_owed_waits", &priority::owed_waits);
  m.def("priority_turns_of_others", &priority::turns_of_others);
}

} // namespace torchgil
