// csrc/gil/module.cpp: torchgil._gil, the half that knows the GIL and no torch.
#include <pybind11/pybind11.h>

#include "collections/collections.h"

namespace torchgil {
void register_functions(pybind11::module_& m);
void register_priority(pybind11::module_& m);
void register_trace(pybind11::module_& m);
void register_watch(pybind11::module_& m);
} // namespace torchgil

PYBIND11_MODULE(_gil, m) {
  torchgil::collections::set_up();
  torchgil::register_functions(m);
  torchgil::register_priority(m);
  torchgil::register_trace(m);
  torchgil::register_watch(m);
}
