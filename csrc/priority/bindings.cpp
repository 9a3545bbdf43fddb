// csrc/priority/bindings.cpp: what torchgil/priority.py needs from C++.
#include <pybind11/pybind11.h>

#include "priority/priority.h"

namespace py = pybind11;

namespace torchgil {
namespace {

/// One block with priority, from its making to leave().
class Entered {
 public:
  Entered() : depth_(priority::enter()) {}
  void leave() {
    if (depth_) {
      priority::leave(depth_);
      depth_.reset();
    }
  }

 private:
  priority::Depth depth_;
};

} // namespace

void register_priority(py::module_& m) {
  py::class_<Entered>(m, "PriorityBlock")
      .def(py::init<>())
      .def("leave", &Entered::leave);
  m.def("priority_unavailable", &priority::redirect_wait);
  m.def("has_priority", &priority::has_priority);
  m.def("priority_answers", &priority::answers);
}

} // namespace torchgil
