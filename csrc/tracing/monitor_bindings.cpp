// csrc/tracing/monitor_bindings.cpp: the monitor as torchgil._C.Monitor.
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <utility>

#include "tracing/culprit.h"
#include "tracing/monitor.h"

namespace torchgil {

namespace {

using Seconds = std::chrono::duration<double>;

/// A Monitor that Python code starts by making it, and stops.
class PyMonitor {
 public:
  PyMonitor(double interval_s, size_t kept, py::dict threads)
      : threads_(std::move(threads)),
        monitor_(
            std::make_unique<Monitor>(
                std::chrono::duration_cast<Monitor::Clock::duration>(
                    Seconds(interval_s)),
                kept)) {}

  ~PyMonitor() {
    if (getpid() != started_in_) {
      // A forked child has neither the thread nor the lock in a known state:
      // what the parent uses is left alone here, and lost.
      monitor_.release();
    }
  }

  PyMonitor(const PyMonitor&) = delete;
  PyMonitor& operator=(const PyMonitor&) = delete;

  /// GIL: held on entry, released while the thread ends.
  void stop() {
    if (getpid() == started_in_) {
      py::gil_scoped_release released;
      monitor_->stop();
    }
  }

  py::tuple take() {
    return named(monitor_->take());
  }

  py::tuple last(double seconds) {
    return named(monitor_->last(
        std::chrono::duration_cast<Monitor::Clock::duration>(
            Seconds(seconds))));
  }

  void reset() {
    monitor_->reset();
  }

 private:
  /// (looks, seconds, [(name, looks that found it holding), ...]).
  /// GIL: held throughout.
  py::tuple named(const Monitor::Counts& counts) const {
    const CollectionPaused paused;
    py::list held;
    for (const auto& [holder, looks] : counts.held) {
      held.append(py::make_tuple(name_of_thread(holder, threads_), looks));
    }
    return py::make_tuple(
        counts.looks, Seconds(counts.covered).count(), std::move(held));
  }

  const pid_t started_in_ = getpid();
  const py::dict threads_;
  std::unique_ptr<Monitor> monitor_;
};

} // namespace

void register_monitor(py::module_& m) {
  py::class_<PyMonitor>(m, "Monitor")
      .def(
          py::init<double, size_t, py::dict>(),
          py::arg("interval_s"),
          py::arg("kept"),
          py::arg("threads"))
      .def("stop", &PyMonitor::stop)
      .def("take", &PyMonitor::take)
      .def("last", &PyMonitor::last, py::arg("seconds"))
      .def("reset", &PyMonitor::reset);
}

} // namespace torchgil
