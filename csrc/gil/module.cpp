// csrc/gil/module.cpp: torchgil._gil, the half that knows the GIL and no torch.
#include <pybind11/pybind11.h>

#include "collections/collections.h"

namespace torchgil {
void register_functions(pybind11::module_& m);
void register_priority(pybind11::module_& m);
void register_trace(pybind11::module_& m);
void register_watch(pybind11::module_& m);
} // namespace torchgil

namespace {

// What is watched is the main interpreter's GIL, and a second copy of what is
// kept here would be another's.
bool in_main_interpreter() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
    return true;
  }
  PyErr_SetString(
      PyExc_ImportError,
      "module torchgil._gil does not support loading in subinterpreters");
  return false;
}

} // namespace

// The interpreter's own refusal, from 3.12 on, is for those that have a GIL of
// their own. pybind11's first step waits for ever in one that has not: it asks
// for the GIL that its thread has.
#define PyInit__gil init_in_main_interpreter
PYBIND11_MODULE(_gil, m) {
  if (!in_main_interpreter()) { // 3.13 does the first step in the main one
    throw pybind11::error_already_set();
  }
  torchgil::collections::set_up();
  torchgil::register_functions(m);
  torchgil::register_priority(m);
  torchgil::register_trace(m);
  torchgil::register_watch(m);
}
#undef PyInit__gil

extern "C" PYBIND11_EXPORT PyObject* PyInit__gil() {
  return in_main_interpreter() ? init_in_main_interpreter() : nullptr;
}
