// csrc/gil/watch/monitor_bindings.cpp: the monitor as torchgil._gil.Monitor.
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <torchgil/gil.h>
#include "collections/collections.h"
#include "collections/paused.h"
#include "watch/culprit.h"
#include "watch/monitor.h"

namespace torchgil {

namespace {

using Seconds = std::chrono::duration<double>;

/// A Monitor that Python code starts by making it, and stops.
class PyMonitor {
 public:
  // GIL: held on entry, released while it begins.
  PyMonitor(double interval_s, size_t kept, py::dict threads)
      : threads_(std::move(threads)) {
    {
      const ReleaseWindow window; // the looker may be busy for a moment
      monitor_ = std::make_unique<Monitor>(
          std::chrono::duration_cast<Clock::duration>(Seconds(interval_s)),
          kept);
    }
    for (const NamedThread& thread : named_threads(threads_)) {
      monitor_->begin_thread(thread.state, thread.id, in_utf8(thread.name));
    }
  }

  // GIL: held on entry, released while the thread ends.
  ~PyMonitor() {
    if (getpid() == started_in_) {
      const ReleaseWindow window;
      monitor_->stop();
    } else {
      // A forked child has neither the thread nor the lock in a known state:
      // what the parent uses is left alone here, and lost.
      monitor_.release(); // NOLINT: lost on purpose
    }
  }

  PyMonitor(const PyMonitor&) = delete;
  PyMonitor& operator=(const PyMonitor&) = delete;

  /// GIL: held on entry, released while the thread ends.
  void stop() {
    if (getpid() == started_in_) {
      {
        const ReleaseWindow window;
        monitor_->stop();
      }
      learn_all(); // a thread that ends from now on is not noticed
      collections_.reset();
    }
  }

  py::tuple take() {
    return named(monitor_->take());
  }

  py::tuple last(double seconds) {
    return named(monitor_->last(
        std::chrono::duration_cast<Clock::duration>(Seconds(seconds))));
  }

  void reset() {
    monitor_->reset();
  }

  /// The calling thread begins or ends, as Python has it. GIL: held.
  bool begin_thread(const py::object& name) {
    PyThreadState* state = PyThreadState_Get();
    return getpid() == started_in_ &&
        monitor_->begin_thread(
            state, PyThreadState_GetID(state), in_utf8(name));
  }

  void end_thread(const py::object& name) {
    if (getpid() == started_in_) {
      monitor_->end_thread(PyThreadState_Get(), in_utf8(name));
    }
  }

 private:
  /// (looks, seconds, [(name, looks that found it holding, and collecting
  /// garbage), ...]). GIL: held throughout.
  py::tuple named(const Monitor::Counts& counts) {
    const CollectionPaused paused;
    collections::see_again();
    py::list held;
    for (const auto& [holder, looks, collecting] : counts.held) {
      learn(*holder);
      held.append(py::make_tuple(shown(holder->name), looks, collecting));
    }
    monitor_->forget_ended();
    return py::make_tuple(
        counts.looks, Seconds(counts.covered).count(), std::move(held));
  }

  /// What the thread is called now, or that it has ended. GIL: held throughout.
  void learn(Holder& holder) {
    if (holder.ended) {
      return;
    }
    const NamedThread now = named_thread(holder.state, threads_);
    if (now.id == 0) {
      monitor_->has_ended(holder);
    } else if (holder.id == 0 || holder.id == now.id) {
      monitor_->name(holder, now.id, in_utf8(now.name));
    } else { // another thread: of these looks nobody knows whose they are
      monitor_->name(holder, holder.id, "");
      monitor_->has_ended(holder);
    }
  }

  void learn_all() {
    const CollectionPaused paused;
    for (Holder* holder : monitor_->living()) {
      learn(*holder);
    }
  }

  static py::object shown(const std::string& name) {
    return name.empty() ? py::none() : py::object(from_utf8(name));
  }

  const pid_t started_in_ = getpid();
  const py::dict threads_;
  std::optional<collections::Client> collections_{std::in_place};
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
      .def("reset", &PyMonitor::reset)
      .def("thread_begins", &PyMonitor::begin_thread, py::arg("name"))
      .def("thread_ends", &PyMonitor::end_thread, py::arg("name"));
}

} // namespace torchgil
