// csrc/gil/watch/prober_bindings.cpp: the prober as torchgil._gil.Prober.
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torchgil/gil.h>
#include "collections/collections.h"
#include "collections/paused.h"
#include "cpython/frozen_stack.h"
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

/// (filename, lineno, function) of each frame, outermost first.
py::list frames_of(const FrozenStack& stack) {
  py::list frames;
  for (auto frame = stack.frames.rbegin(); frame != stack.frames.rend();
       ++frame) {
    frames.append(
        py::make_tuple(
            from_utf8(frame->filename),
            frame->line,
            from_utf8(frame->function)));
  }
  return frames;
}

/// What a Prober is made with. `sinks` and `hang_sinks` are functions written
/// in C that do not wait: each is called with what is found, so that the
/// knocker runs no Python code, and nothing of the program's can hold it up.
/// `totals` are the number of holds, their seconds, and the number of hangs.
struct Wanted {
  double threshold_s;
  double mean_gap_s;
  double look_period_s;
  double hang_s;       // 0: there are no hangs
  double exit_after_s; // 0: the process goes on
  int output;          // the file descriptor for hangs
  py::dict threads;    // threading's own, by ident
  py::list sinks;
  py::list hang_sinks;
  py::list totals;
};

/// A Prober that Python code starts by making it, and stops.
class PyProber {
 public:
  // GIL: held on entry, released while its threads begin.
  explicit PyProber(Wanted wanted)
      : wanted_(std::move(wanted)),
        // Not py::module_::import: that can run Python code, and the thread
        // of a daemon could be cut off in it.
        switch_interval_(
            py::reinterpret_borrow<py::object>(
                PySys_GetObject("getswitchinterval"))) {
    note_threads();
    const Prober::Settings settings{
        seconds(wanted_.threshold_s),
        seconds(wanted_.mean_gap_s),
        seconds(wanted_.look_period_s),
        {seconds(wanted_.hang_s),
         seconds(wanted_.exit_after_s),
         seconds(switch_interval_().cast<double>()),
         wanted_.output,
         can_read_frozen_stacks()}};
    const ReleaseWindow window; // the looker may be busy for a moment
    prober_ = std::make_unique<Prober>(
        settings,
        known_,
        [this](const Hold& hold) { call_report(hold); },
        [this] { knocked(); });
  }

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

  /// For how long the hold goes on that it looks at now, in seconds.
  double holding() const {
    return getpid() == started_in_ ? in_seconds(prober_->holding()) : 0;
  }

  /// The calling thread begins: its end is wanted, too. GIL: held.
  bool thread_begins(const py::object& name) {
    if (getpid() == started_in_) {
      known_.add(this_thread(name));
    }
    return true;
  }

  /// GIL: held throughout.
  void thread_ends(py::object name) {
    if (getpid() == started_in_) {
      known_.remove(PyThreadState_Get());
    }
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
    return look_up_culprit(hold.holder, wanted_.threads);
  }

  /// A thread may be given another name at any time. GIL: held throughout.
  void note_threads() {
    const CollectionPaused paused;
    known_.replace(known_threads(wanted_.threads));
    noted_ = Clock::now();
  }

  /// GIL: held throughout, by the knocker.
  void knocked() noexcept {
    try {
      if (Clock::now() - noted_ > kNotedFor) {
        note_threads();
      }
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("torchgil.Watchdog");
    } catch (const std::exception&) { // no memory: the names stay as they were
    }
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
      if (hold.hang) {
        tell(wanted_.hang_sinks, hang_of(hold, queued));
        wanted_.totals[2] = py::float_(wanted_.totals[2].cast<double>() + 1);
      }
      if (!is_long(
              hold.length(),
              queued,
              seconds(wanted_.threshold_s),
              seconds(turn))) {
        return;
      }
      const double length = in_seconds(hold.length());
      py::list& totals = wanted_.totals;
      totals[0] = py::float_(totals[0].cast<double>() + 1);
      totals[1] = py::float_(totals[1].cast<double>() + length);
      tell(
          wanted_.sinks,
          hold_of(hold, queued, culprit.name, culprit.ident, culprit.frames));
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("torchgil.Watchdog");
    } catch (const std::exception& error) {
      PySys_FormatStderr("torchgil.Watchdog: %s\n", error.what());
    }
  }

  static void tell(const py::list& sinks, const py::tuple& found) {
    for (py::handle sink : sinks) {
      sink(found);
    }
  }

  /// What a hold is reported as. GIL: held throughout.
  static py::tuple hold_of(
      const Hold& hold,
      Clock::duration queued,
      const py::object& name,
      uint64_t ident,
      const py::list& frames) {
    return py::make_tuple(
        in_seconds(hold.length()),
        in_seconds(queued),
        name,
        ident,
        !hold.may_have_run_on,
        frames,
        collections_in(hold),
        hold.hang != nullptr);
  }

  /// The thread and its frames are those that were seen while it went on.
  /// GIL: held throughout.
  static py::tuple hang_of(const Hold& hold, Clock::duration queued) {
    const Hang& hang = *hold.hang;
    const KnownThread& who = hang.holder.who;
    py::list objects;
    for (const std::string& path : hang.objects) {
      objects.append(
          py::reinterpret_steal<py::str>(
              PyUnicode_DecodeFSDefault(path.c_str())));
    }
    py::list waiting;
    for (const Hang::Thread& thread : hang.waiting) {
      waiting.append(
          py::make_tuple(
              from_utf8(thread.who.name),
              thread.who.ident,
              frames_of(thread.stack)));
    }
    return py::make_tuple(
        hold_of(
            hold,
            queued,
            from_utf8(who.name),
            who.ident,
            frames_of(hang.holder.stack)),
        from_utf8(hang.state),
        hang.waiting_known ? py::object(waiting) : py::none(),
        objects);
  }

  static constexpr Clock::duration kNotedFor = std::chrono::seconds(1);

  const pid_t started_in_ = getpid();
  Wanted wanted_;
  const py::object switch_interval_; // the user may change it at any time
  std::optional<collections::Client> collections_{std::in_place};
  std::array<Ended, 64> ended_; // a ring: a hold is reported soon
  size_t ended_count_ = 0;
  KnownThreads known_;
  Clock::time_point noted_{};
  std::unique_ptr<Prober> prober_; // last: its threads use the rest
};

} // namespace

void register_prober(py::module_& m) {
  py::class_<PyProber>(m, "Prober")
      .def(
          py::init([](double threshold_s,
                      double mean_gap_s,
                      double look_period_s,
                      double hang_s,
                      double exit_after_s,
                      int output,
                      py::dict threads,
                      py::list sinks,
                      py::list hang_sinks,
                      py::list totals) {
            return std::make_unique<PyProber>(Wanted{
                threshold_s,
                mean_gap_s,
                look_period_s,
                hang_s,
                exit_after_s,
                output,
                std::move(threads),
                std::move(sinks),
                std::move(hang_sinks),
                std::move(totals)});
          }),
          py::kw_only(),
          py::arg("threshold_s"),
          py::arg("mean_gap_s"),
          py::arg("look_period_s"),
          py::arg("hang_s"),
          py::arg("exit_after_s"),
          py::arg("output"),
          py::arg("threads"),
          py::arg("sinks"),
          py::arg("hang_sinks"),
          py::arg("totals"))
      .def("stop", &PyProber::stop)
      .def("thread_begins", &PyProber::thread_begins, py::arg("name"))
      .def("thread_ends", &PyProber::thread_ends, py::arg("name"))
      .def_property_readonly("knocks", &PyProber::knocks)
      .def_property_readonly("holding_s", &PyProber::holding);
  m.def("can_read_frozen_stacks", &can_read_frozen_stacks);
}

} // namespace torchgil
