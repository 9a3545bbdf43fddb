// csrc/torch/gil_functions.cpp: finds the other half's functions.
#include "gil_functions.h"

#include <pybind11/pybind11.h>

#include <string>

namespace torchgil {

void find_gil_functions() {
  namespace py = pybind11;
  // A module's attribute as PyCapsule_Import() would find it.
  py::module_::import("torchgil._gil");
  const auto* found = static_cast<const GilFunctions*>(
      PyCapsule_Import(kGilFunctionsCapsule, 0));
  if (found == nullptr) {
    throw py::error_already_set();
  }
  if (found->version != GilFunctions::kVersion) {
    throw py::import_error(
        "torchgil._torch wants version " +
        std::to_string(GilFunctions::kVersion) +
        " of the functions of torchgil._gil, which has version " +
        std::to_string(found->version) + ": they are of different builds");
  }
  gil = found;
}

} // namespace torchgil
