// csrc/gil/collections/collections.cpp: when garbage is collected, and in which
// thread.
#include <Python.h>
#include <pybind11/pybind11.h>

#include "collections/collections.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "clock.h"

namespace torchgil::collections {
namespace {

namespace py = pybind11;

constexpr int64_t kShortNs = 100'000; // hundreds fall into one long hold

struct Collection {
  const void* thread_state = nullptr;
  int generation = -1;
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
};

std::atomic<const void*> collecting_thread{nullptr};

// GIL: held wherever the rest is read or written.
Collection current;
std::array<Collection, 256> kept; // a ring
size_t kept_count = 0;
int clients = 0;
Client::Witness witness = nullptr;
uint64_t forks = 0;
PyObject* callbacks = nullptr; // gc.callbacks, kept for good as are these
PyObject* callback = nullptr;
PyObject* generation_key = nullptr;

void on_start(PyObject* info) {
  PyObject* value =
      PyDict_Check(info) ? PyDict_GetItem(info, generation_key) : nullptr;
  const long generation =
      value != nullptr && PyLong_Check(value) ? PyLong_AsLong(value) : -1;
  if (generation < 0) {
    PyErr_Clear();
    return; // not the interpreter's call
  }
  current = {
      PyThreadState_Get(), static_cast<int>(generation), now_ns(), INT64_MAX};
  collecting_thread.store(current.thread_state, std::memory_order_relaxed);
  if (witness != nullptr) {
    witness(current.begin_ns, current.generation, true);
  }
}

void on_stop() {
  if (current.thread_state != PyThreadState_Get()) {
    return; // it began before anybody wanted to know
  }
  current.end_ns = now_ns();
  if (current.end_ns - current.begin_ns >= kShortNs) {
    kept[kept_count++ % kept.size()] = current;
  }
  if (witness != nullptr) {
    witness(current.end_ns, current.generation, false);
  }
  current = {};
  collecting_thread.store(nullptr, std::memory_order_relaxed);
}

// GIL: held. Anybody can call what stands in a public list, with anything.
PyObject* on_collection(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (clients > 0 && count == 2 && PyUnicode_Check(args[0])) {
    if (PyUnicode_CompareWithASCIIString(args[0], "start") == 0) {
      on_start(args[1]);
    } else if (PyUnicode_CompareWithASCIIString(args[0], "stop") == 0) {
      on_stop();
    }
  }
  Py_RETURN_NONE;
}

PyMethodDef definition = {
    "torchgil_sees_collections",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&on_collection)),
    METH_FASTCALL,
    "Notes the collection for a trace, watchdog or monitor that runs."};

// Where it stands in gc.callbacks, or -1. By identity: to compare the other
// functions there could run Python code.
Py_ssize_t place() {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(callbacks); ++i) {
    if (PyList_GET_ITEM(callbacks, i) == callback) {
      return i;
    }
  }
  return -1;
}

void remove() {
  const Py_ssize_t at = place();
  if (at >= 0 && PyList_SetSlice(callbacks, at, at + 1, nullptr) != 0) {
    PyErr_Clear(); // no memory: it stays, and does nothing
  }
  current = {};
  collecting_thread.store(nullptr, std::memory_order_relaxed);
}

// In the child of a fork: whoever wanted to know is the parent's.
void forget() {
  ++forks;
  clients = 0;
  witness = nullptr;
  remove();
}

} // namespace

Client::Client(Witness told) : made_in_(forks), has_witness_(told != nullptr) {
  see_again();
  ++clients;
  if (has_witness_) {
    witness = told;
  }
}

Client::~Client() {
  if (made_in_ != forks) {
    return;
  }
  if (has_witness_) {
    witness = nullptr;
  }
  if (--clients == 0) {
    remove();
  }
}

bool still_seen() {
  return place() >= 0;
}

void see_again() {
  if (still_seen()) {
    return;
  }
  current = {}; // of a collection whose end was not seen
  collecting_thread.store(nullptr, std::memory_order_relaxed);
  if (PyList_Append(callbacks, callback) != 0) {
    throw py::error_already_set();
  }
}

const void* collecting() noexcept {
  return collecting_thread.load(std::memory_order_relaxed);
}

Found within(const void* thread_state, int64_t from_ns, int64_t until_ns) {
  Found found;
  const auto add = [&](const Collection& one) {
    const int64_t ns =
        std::min(one.end_ns, until_ns) - std::max(one.begin_ns, from_ns);
    if (one.thread_state != thread_state || ns <= 0) {
      return;
    }
    ++found.count;
    found.ns += ns;
    if (ns > found.longest_ns) {
      found.longest_ns = ns;
      found.generation = one.generation;
    }
  };
  std::for_each_n(kept.begin(), std::min(kept_count, kept.size()), add);
  if (current.thread_state != nullptr) {
    add(current);
  }
  return found;
}

void set_up() {
  py::object found = py::module_::import("gc").attr("callbacks");
  if (!PyList_CheckExact(found.ptr())) { // the program calls another thing so
    found = py::list();
  }
  callbacks = found.release().ptr();
  generation_key = py::str("generation").release().ptr();
  callback = PyCFunction_New(&definition, nullptr);
  if (callback == nullptr) {
    throw py::error_already_set();
  }
  const auto os = py::module_::import("os");
  if (py::hasattr(os, "register_at_fork")) {
    os.attr("register_at_fork")(
        py::arg("after_in_child") = py::cpp_function(&forget));
  }
}

} // namespace torchgil::collections
