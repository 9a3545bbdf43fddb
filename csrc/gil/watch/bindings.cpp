// csrc/gil/watch/bindings.cpp: the watchers in Python, and what they have in
// common.
#include <pybind11/pybind11.h>

#include <torchgil/gil.h>

#include "cpython/gil_holder.h"
#include "wakeup.h"

#include <chrono>
#include <vector>

namespace py = pybind11;

namespace torchgil {

void register_monitor(py::module_& m);
void register_prober(py::module_& m);

namespace {

py::list wakeup_latencies(int samples) {
  std::vector<std::chrono::nanoseconds> measured;
  {
    const ReleaseWindow window;
    measured = measure_wakeups(samples);
  }
  py::list seconds;
  for (auto latency : measured) {
    seconds.append(std::chrono::duration<double>(latency).count());
  }
  return seconds;
}

/// __exit__ of what has a stop(). Ctrl-C is raised between any two steps of
/// Python code, the very first of an __exit__ among them; in C++ it is not, so
/// that one Ctrl-C cannot keep stop() from being called and run to its end.
/// GIL: held on entry; stop() gives it up.
void leave_block(const py::object& self, const py::args&) {
  try {
    self.attr("stop")();
  } catch (py::error_already_set&) {
    self.attr("stop")();
    throw;
  }
}

} // namespace

void register_watch(py::module_& m) {
  register_monitor(m);
  register_prober(m);
  const py::cpp_function leaves(
      &leave_block, py::name("leave_block"), py::scope(m), py::arg("self"));
  m.attr("leave_block") =
      py::reinterpret_steal<py::object>(PyInstanceMethod_New(leaves.ptr()));
  m.def("gil_holder_known", &gil_holder_known);
  m.def("wakeup_latencies", &wakeup_latencies, py::arg("samples"));
}

} // namespace torchgil
