// csrc/module.cpp: torchgil._C. Each wing registers its own bindings.
#include <pybind11/pybind11.h>

namespace torchgil {
void register_forward(pybind11::module_& m);
void register_ops(pybind11::module_& m);
void register_priority(pybind11::module_& m);
void register_threads(pybind11::module_& m);
void register_tracing(pybind11::module_& m);
} // namespace torchgil

PYBIND11_MODULE(_C, m) {
  torchgil::register_forward(m);
  torchgil::register_ops(m);
  torchgil::register_priority(m);
  torchgil::register_threads(m);
  torchgil::register_tracing(m);
}
