// csrc/threads/bindings.cpp: a thread's settings in Python.
#include <pybind11/pybind11.h>

#include "threads/own_threads.h"

namespace py = pybind11;

namespace torchgil {

// GIL: held throughout (registration); the bound function gives it up.
void register_threads(py::module_& m) {
  py::options options;
  options.disable_function_signatures();
  m.def(
      "keep_own_intra_op_threads",
      &threads::keep_own_threads,
      "keep_own_intra_op_threads()\n--\n\n"
      "The calling thread's number is not taken away by a library's first "
      "parallel region.");
}

} // namespace torchgil
