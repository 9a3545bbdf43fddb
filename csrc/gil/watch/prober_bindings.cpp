// csrc/gil/watch/prober_bindings.cpp: the prober as torchgil._gil.Prober.
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <torchgil/gil.h>
#include "collections/collections.h"
#include "collections/paused.h"
#include "cpython/gil_holder.h"
#include "watch/culprit.h"
#include "watch/prober.h"

namespace torchgil {

namespace {

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(value));
}

double in_seconds(Clock::duration value) {
  return std::chrono::duration<double>(value).count();
}

double in_seconds(int64_t ns) {
  return in_seconds(std::chrono::nanoseconds(ns));
}

int64_t in_ns(Clock::time_point time) {
  return std::chrono::nanoseconds(time.time_since_epoch()).count();
}

/// (how many, seconds, seconds of the longest, its generation). GIL: held.
py::tuple collections_in(const Hold& hold) {
  const collections::Found found =
      collections::within(hold.holder, in_ns(hold.first), in_ns(hold.last));
  return py::make_tuple(
      found.count,
      in_seconds(found.ns),
      in_seconds(found.longest_ns),
      found.generation);
}

/// A Prober that Python code starts by making it, and stops. What it finds
/// goes to each of `sinks`: functions written in C that do not wait; `totals`
/// are the number of holds and their seconds. So the
/// knocker runs no Python code, and nothing of the program's can hold it up.
class PyProber {
 public:
  PyProber(
      double threshold,
      double mean_gap,
      double look_period,
      py::dict threads,
      py::list sinks,
      py::list totals)
      : threshold_(seconds(threshold)),
        threads_(std::move(threads)),
        sinks_(std::move(sinks)),
        totals_(std::move(totals)),
        // Not py::module_::import: that can run Python code, and the thread
        // of a daemon could be cut off in it.
        switch_interval_(
            py::reinterpret_borrow<py::object>(
                PySys_GetObject("getswitchinterval"))),
        prober_(
            std::make_unique<Prober>(
                Prober::Settings{
                    threshold_, seconds(mean_gap), seconds(look_period)},
                [this](const Hold& hold) { call_report(hold); })) {}

  // GIL: as stop() has it.
  ~PyProber() {
    stop();
    if (getpid() != started_in_) {
      // A forked child has neither the threads nor their locks in a known
      // state: what the parent uses is left alone here, and lost.
      prober_.release(); // NOLINT: lost on purpose
    }
  }

  PyProber(const PyProber&) = delete;
  PyProber& operator=(const PyProber&) = delete;

  /// GIL: held on entry, released while both threads end.
  void stop() {
    if (getpid() != started_in_) {
      return;
    }
    {
      const ReleaseWindow window;
      prober_->stop();
    }
    collections_.reset();
  }

  int64_t knocks() const {
    return getpid() == started_in_ ? prober_->knocks() : 0;
  }

  /// The calling thread begins: its end is wanted, too. GIL: held.
  bool thread_begins(const py::object& name) {
    return true;
  }

  /// GIL: held throughout.
  void thread_ends(py::object name) {
    ended_[ended_count_++ % ended_.size()] = {
        PyThreadState_Get(), Clock::now(), std::move(name)};
  }

 private:
  /// A thread that has ended; another may have its PyThreadState's memory.
  struct Ended {
    const void* state = nullptr;
    Clock::time_point when{};
    py::object name = py::str();
  };

  /// Who held it. GIL: held throughout.
  Culprit culprit_of(const Hold& hold) const {
    for (const Ended& thread : ended_) {
      if (thread.state == hold.holder && thread.when >= hold.first) {
        Culprit culprit;
        culprit.name = thread.name;
        return culprit;
      }
    }
    return look_up_culprit(hold.holder, threads_);
  }

  /// GIL: held throughout, by the knocker.
  void call_report(const Hold& hold) noexcept {
    try {
      const CollectionPaused paused;
      // First of all, while the culprit is where it gave way.
      const Culprit culprit = culprit_of(hold);
      Clock::duration queued{};
      if (auto before = hold.queued_before.find(culprit.native_id);
          before != hold.queued_before.end()) {
        queued = queued_time(culprit.native_id) - before->second;
      }
      const double turn = switch_interval_().cast<double>();
      if (!is_long(hold.length(), queued, threshold_, seconds(turn))) {
        return;
      }
      const double length = in_seconds(hold.length());
      totals_[0] = py::float_(totals_[0].cast<double>() + 1);
      totals_[1] = py::float_(totals_[1].cast<double>() + length);
      const py::tuple found = py::make_tuple(
          length,
          in_seconds(queued),
          culprit.name,
          culprit.ident,
          !hold.may_have_run_on,
          culprit.frames,
          collections_in(hold));
      for (py::handle sink : sinks_) {
        sink(found);
      }
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("torchgil.Watchdog");
    } catch (const std::exception& error) {
      PySys_FormatStderr("torchgil.Watchdog: %s\n", error.what());
    }
  }

  const pid_t started_in_ = getpid();
  const Clock::duration threshold_;
  const py::dict threads_;
  const py::list sinks_;
  const py::list totals_;
  const py::object switch_interval_; // the user may change it at any time
  std::optional<collections::Client> collections_{std::in_place};
  std::array<Ended, 64> ended_; // a ring: a hold is reported soon
  size_t ended_count_ = 0;
  std::unique_ptr<Prober> prober_; // last: its threads use the rest
};

} // namespace

void register_prober(py::module_& m) {
  py::class_<PyProber>(m, "Prober")
      .def(
          py::init<double, double, double, py::dict, py::list, py::list>(),
          py::arg("threshold_s"),
          py::arg("mean_gap_s"),
          py::arg("look_period_s"),
          py::arg("threads"),
          py::arg("sinks"),
          py::arg("totals"))
      .def("stop", &PyProber::stop)
      .def("thread_begins", &PyProber::thread_begins, py::arg("name"))
      .def("thread_ends", &PyProber::thread_ends, py::arg("name"))
      .def_property_readonly("knocks", &PyProber::knocks);
}

} // namespace torchgil
