// csrc/priority/bindings.cpp: what torchgil/priority.py needs from C++.
#include <pybind11/pybind11.h>

#include "priority/priority.h"

#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace torchgil {
namespace {

/// What gil_priority() returns, but for being a decorator: the blocks that it
/// has open, each with the thread that entered it. GIL: held throughout.
class Blocks {
 public:
  void enter() {
    open_.emplace_back(std::this_thread::get_id(), priority::enter());
  }

  // This thread's last one; any, where a generator ends on another thread than
  // it began on.
  void leave() {
    if (open_.empty()) {
      throw std::runtime_error("gil_priority: no block is open");
    }
    const auto here = std::this_thread::get_id();
    auto block = open_.end() - 1;
    for (auto at = open_.rbegin(); at != open_.rend(); ++at) {
      if (at->first == here) {
        block = at.base() - 1;
        break;
      }
    }
    priority::leave(block->second);
    open_.erase(block);
  }

 private:
  std::vector<std::pair<std::thread::id, priority::Depth>> open_;
};

} // namespace

void register_priority(py::module_& m) {
  py::class_<Blocks>(m, "PriorityBlocks")
      .def(py::init<>())
      .def("__enter__", &Blocks::enter)
      .def("__exit__", [](Blocks& blocks, const py::args&) { blocks.leave(); });
  m.def("priority_unavailable", &priority::redirect_wait);
  m.def("has_priority", &priority::has_priority);
  m.def("priority_answers", &priority::answers);
}

} // namespace torchgil
