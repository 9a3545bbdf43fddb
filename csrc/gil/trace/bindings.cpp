// csrc/gil/trace/bindings.cpp: the trace in Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <torchgil/gil.h>

#include "collections/collections.h"
#include "cpython/thread_states.h"
#include "trace/event_log.h"
#include "trace/gil_events.h"
#include "trace/op_source.h"

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace py = pybind11;

namespace torchgil {

namespace {

// GIL: held wherever these are read or written. Beginning and ending give it up
// in between, and another thread may come then.
enum class Phase { kNone, kBegins, kRuns, kEnds };
Phase phase = Phase::kNone;
auto& collections_seen = *new std::optional<collections::Client>;

int64_t clock_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

// What to add to a monotonic time to get the wall clock's, which
// torch.profiler writes. The tightest of a few readings.
int64_t unix_offset_ns() {
  int64_t best = INT64_MAX;
  int64_t offset = 0;
  for (int i = 0; i < 16; ++i) {
    const int64_t before = now_ns();
    const int64_t unix_ns = clock_ns(CLOCK_REALTIME);
    const int64_t after = now_ns();
    if (after - before < best) {
      best = after - before;
      offset = unix_ns - (before + (after - before) / 2);
    }
  }
  return offset;
}

// GIL: held, in the thread that collects.
void note_collection(int64_t time_ns, int generation, bool starts) {
  WriteSection r;
  if (r) {
    r->push(
        time_ns,
        starts ? EventKind::kCollectionStart : EventKind::kCollectionEnd,
        generation);
  }
}

void after_fork_in_child() {
  event_log::abandon();
  gil_events::after_fork_in_child();
}

// What was begun or ended is written to `into`, too, where it is given: Ctrl-C
// comes as this has returned, and takes the result away with it.
//
// GIL: held on entry and return; `gil` events give it up in between.
py::dict trace_start(
    size_t max_events,
    bool gil,
    bool lock,
    bool ops,
    bool newest,
    std::optional<py::dict> into) {
  if (phase != Phase::kNone) {
    throw std::runtime_error(
        "a trace is already running in this process, and there can be only "
        "one at a time: leave the other torchgil.trace() or audit() first");
  }
  phase = Phase::kBegins;
  gil_events::Witnesses witnesses;
  int64_t start_ns = 0;
  try {
    if (gil) {
      witnesses = gil_events::start(lock);
    }
    if (ops) {
      op_source::start();
    }
    collections_seen.emplace(&note_collection);
    start_ns =
        event_log::start(max_events, newest ? Keep::kNewest : Keep::kOldest);
  } catch (...) {
    collections_seen.reset();
    op_source::stop();
    gil_events::stop();
    phase = Phase::kNone;
    throw;
  }
  phase = Phase::kRuns;
  if (gil) {
    gil_events::mark_holder(start_ns);
  }
  py::dict result = into.value_or(py::dict());
  result["entry_points"] = witnesses.entry_points;
  result["lock"] = witnesses.lock;
  result["slots"] = witnesses.slots;
  result["missing"] = witnesses.missing;
  result["start_ns"] = start_ns;
  return result;
}

constexpr size_t kPieceEvents = 1 << 16;

// In pieces of a megabyte, and others may run after each: of ten million events
// the copies take longer than anybody should wait for the GIL. GIL: held on
// entry and return, given up in between.
py::list in_pieces(std::vector<Event>& events) {
  py::list pieces;
  for (size_t at = 0; at < events.size(); at += kPieceEvents) {
    const size_t count = std::min(kPieceEvents, events.size() - at);
    pieces.append(
        py::bytes(
            reinterpret_cast<const char*>(events.data() + at),
            count * sizeof(Event)));
    if (count == kPieceEvents) {
      ReleaseWindow others_turn;
    }
  }
  if (pieces.size() > 1) {
    ReleaseWindow released;
    std::vector<Event>().swap(events);
  }
  return pieces;
}

// GIL: held on entry and return, given up once the recording has ended; a
// writer on another thread never waits for it.
py::dict trace_stop(std::optional<py::dict> into) {
  if (phase != Phase::kRuns) {
    throw std::runtime_error("trace_stop: no trace is running");
  }
  phase = Phase::kEnds;
  // Before the end: a thread that asks from now on has an event that says so.
  const std::vector<int64_t> waiting = gil_events::waiting();
  const auto put_back = [] {
    collections_seen.reset();
    op_source::stop();
    auto missed = gil_events::stop();
    phase = Phase::kNone;
    return missed;
  };
  EventLog log;
  event_log::stop();
  try {
    ReleaseWindow released; // no Python objects below
    log = event_log::collect();
  } catch (const std::bad_alloc&) {
    put_back();
    throw;
  }
  const bool all_collections_seen = collections::still_seen();
  const auto missed = put_back();
  py::list threads;
  for (auto& thread : log.threads) {
    threads.append(
        py::make_tuple(
            thread.ident,
            thread.native_id,
            thread.name,
            in_pieces(thread.events),
            thread.dropped));
  }
  py::dict result = into.value_or(py::dict());
  result["start_ns"] = log.start_ns;
  result["stop_ns"] = log.stop_ns;
  result["complete_from_ns"] = log.complete_from_ns;
  result["complete_until_ns"] = log.complete_until_ns;
  result["dropped"] = log.dropped;
  result["unix_offset_ns"] = unix_offset_ns();
  result["names"] = py::bytes(log.names);
  result["threads"] = threads;
  result["missed_objects"] = missed;
  result["waiting"] = waiting;
  result["all_collections_seen"] = all_collections_seen;
  return result;
}

bool trace_running() {
  return event_log::running();
}

void trace_mark() {
  WriteSection r;
  if (r) {
    r->push(now_ns(), EventKind::kMark);
  }
}

// In the child of a fork: the trace is the parent's.
void trace_forget() {
  collections_seen.reset();
  op_source::stop();
  phase = Phase::kNone;
}

} // namespace

void register_trace(py::module_& m) {
  // As the extension is loaded, and so after the handlers of what it is built
  // on: in the child of a fork they are run in this order.
  pthread_atfork(nullptr, nullptr, after_fork_in_child);
  m.def(
      "trace_start",
      &trace_start,
      py::arg("max_events"),
      py::arg("gil"),
      py::arg("lock"),
      py::arg("ops") = true,
      py::arg("newest") = false,
      py::arg("into") = py::none());
  m.def("trace_stop", &trace_stop, py::arg("into") = py::none());
  m.def("thread_idents", &idents_of_threads);
  m.def("trace_running", &trace_running);
  m.def("trace_mark", &trace_mark);
  m.def("trace_forget", &trace_forget);
}

} // namespace torchgil
