// csrc/torch/module.cpp: torchgil._torch, the half that knows torch.
#include <pybind11/pybind11.h>

#include "gil_functions.h"
#include "op_events.h"

namespace torchgil::forward {
void register_bindings(pybind11::module_& m);
} // namespace torchgil::forward

namespace torchgil {
void register_ops(pybind11::module_& m);
void register_threads(pybind11::module_& m);
} // namespace torchgil

PYBIND11_MODULE(_torch, m) {
  torchgil::find_gil_functions();
  torchgil::op_events::register_source();
  torchgil::forward::register_bindings(m);
  torchgil::register_ops(m);
  torchgil::register_threads(m);
}
