// csrc/gil/functions.cpp: the table for the half that knows torch.
#include "functions.h"

#include <pybind11/pybind11.h>

#include "priority/mark.h"
#include "threads/own_threads.h"
#include "trace/op_source.h"

namespace torchgil {
namespace {

const GilFunctions functions = {
    GilFunctions::kVersion,
    &op_source::set,
    &op_source::op_starts,
    &op_source::op_ends,
    &priority::begin_asking,
    &priority::end_asking,
    &threads::keep_own_threads,
};

} // namespace

void register_functions(pybind11::module_& m) {
  m.attr("functions") = pybind11::capsule(&functions, kGilFunctionsCapsule);
}

} // namespace torchgil
