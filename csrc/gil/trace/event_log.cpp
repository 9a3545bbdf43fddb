// csrc/gil/trace/event_log.cpp: who writes events, and when a trace runs.
#include "trace/event_log.h"

#include "initial_exec.h"
#include "trace/event_buffers.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#include <new>

namespace torchgil {

namespace {

std::atomic<uint64_t> active_trace{0};
uint64_t last_trace = 0;
int64_t start_ns = 0;
int64_t stop_ns = 0;
std::atomic<Recorder*> recorders{nullptr};

TORCHGIL_INITIAL_EXEC
thread_local Recorder* this_recorder = nullptr;

// Runs when a thread that recorded something ends.
void on_thread_end(void* value) {
  auto* recorder = static_cast<Recorder*>(value);
  if (recorder->trace_id == active_trace.load()) {
    WriteSection section;
    if (section) {
      section->push(now_ns(), EventKind::kThreadEnd);
      event_buffers::close_log(section->log);
    }
  }
  recorder->trace_id = 0;
  recorder->log = nullptr;
  this_recorder = nullptr;
  recorder->taken.store(false, std::memory_order_release);
}

pthread_key_t thread_end_key;
const int thread_end_made [[maybe_unused]] =
    pthread_key_create(&thread_end_key, on_thread_end);

Recorder* adopt_recorder() {
  Recorder* found = nullptr;
  for (auto* r = recorders.load(std::memory_order_acquire); r; r = r->next) {
    bool free = false;
    if (r->taken.compare_exchange_strong(free, true)) {
      found = r;
      break;
    }
  }
  if (!found) {
    found = new (std::nothrow) Recorder;
    if (!found) {
      return nullptr;
    }
    found->taken = true;
    found->next = recorders.load();
    while (!recorders.compare_exchange_weak(found->next, found)) {
    }
  }
  pthread_setspecific(thread_end_key, found);
  this_recorder = found;
  return found;
}

int64_t native_thread_id() {
#if defined(__linux__)
  return syscall(SYS_gettid);
#else
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pthread_self()));
#endif
}

// This thread's first event in this trace.
bool open_log(Recorder* recorder, uint64_t id) {
  ThreadLog* log = event_buffers::open_log();
  recorder->log = log;
  if (!log) {
    return false;
  }
  recorder->trace_id = id;
  log->ident = static_cast<uint64_t>(
      reinterpret_cast<uintptr_t>(reinterpret_cast<void*>(pthread_self())));
  log->native_id = native_thread_id();
#if defined(__linux__)
  prctl(PR_GET_NAME, log->name);
#endif
  return true;
}

} // namespace

void Recorder::push(int64_t time_ns, EventKind kind, uint64_t name) {
  if (log->cursor == log->limit && !event_buffers::make_room(log))
      [[unlikely]] {
    if (log->dropped++ == 0) {
      log->first_drop_ns = time_ns;
    }
    log->last_drop_ns = time_ns;
    return;
  }
  *log->cursor++ = {time_ns, name << 8 | static_cast<uint8_t>(kind)};
}

void Recorder::change_last(EventKind from, EventKind to) {
  if (log->dropped || !log->last || log->cursor == log->last->events) {
    return;
  }
  Event& event = log->cursor[-1];
  if (event.data == static_cast<uint64_t>(from)) {
    event.data = static_cast<uint64_t>(to);
  }
}

uint64_t Recorder::intern(const char* name) {
  return event_buffers::intern(log, name);
}

WriteSection::WriteSection() {
  if (active_trace.load(std::memory_order_relaxed) == 0) {
    return;
  }
  Recorder* recorder = this_recorder ? this_recorder : adopt_recorder();
  if (!recorder || recorder->writing.load(std::memory_order_relaxed)) {
    return; // out of memory, or a signal handler inside a section
  }
  // Sequentially consistent, against stop(): either it sees us writing, or we
  // see that the trace has ended.
  recorder->writing.store(true, std::memory_order_seq_cst);
  const uint64_t id = active_trace.load(std::memory_order_seq_cst);
  if (id == 0 || (recorder->trace_id != id && !open_log(recorder, id))) {
    recorder->writing.store(false, std::memory_order_release);
    return;
  }
  recorder_ = recorder;
}

namespace event_log {

bool running() {
  return active_trace.load(std::memory_order_relaxed) != 0;
}

int64_t start(size_t max_events, Keep keep) {
  event_buffers::reserve(max_events, keep);
  start_ns = now_ns();
  active_trace.store(++last_trace, std::memory_order_seq_cst);
  return start_ns;
}

void stop() {
  active_trace.store(0, std::memory_order_seq_cst);
  for (auto* r = recorders.load(); r; r = r->next) {
    while (r->writing.load(std::memory_order_acquire)) {
      sched_yield();
    }
  }
  stop_ns = now_ns();
}

EventLog collect() {
  EventLog out;
  out.start_ns = start_ns;
  out.stop_ns = stop_ns;
  event_buffers::collect(out);
  event_buffers::release();
  return out;
}

void abandon() {
  active_trace.store(0, std::memory_order_seq_cst);
  event_buffers::forget_turns();
  for (auto* r = recorders.load(); r; r = r->next) {
    // The other threads do not exist here.
    r->writing.store(false, std::memory_order_relaxed);
    if (r != this_recorder) {
      r->trace_id = 0;
      r->taken.store(false, std::memory_order_relaxed);
    }
  }
}

} // namespace event_log
} // namespace torchgil
