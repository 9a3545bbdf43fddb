// csrc/torch/threads.cpp: a thread's own number of intra-op threads.
#include <pybind11/pybind11.h>

#include <ATen/Parallel.h>

#include "gil_functions.h"

namespace torchgil {

// GIL: held throughout (registration); the bound function gives it up.
void register_threads(pybind11::module_& m) {
  pybind11::options options;
  options.disable_function_signatures();
  m.def(
      "keep_own_intra_op_threads",
      [] { gil->keep_own_threads(&at::init_num_threads); },
      "keep_own_intra_op_threads()\n--\n\n"
      "The calling thread's number is not taken away by a library's first "
      "parallel region.");
}

} // namespace torchgil
