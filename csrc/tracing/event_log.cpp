// csrc/tracing/event_log.cpp: per-thread buffers of time-stamped events.
#include "tracing/event_log.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

namespace torchgil {

struct Chunk {
  Chunk* next;         // of the same thread
  Chunk* closed_later; // of any thread, where the newest events are kept
  ThreadLog* owner;
  Event* end; // one past the last event, once the chunk is closed
  Event events[];
};

struct ThreadLog {
  ThreadLog* next;
  ThreadLog* next_unused;
  bool ended;
  Chunk* first;
  Chunk* last; // the one written to
  Event* cursor;
  Event* limit;
  int64_t dropped;
  int64_t first_drop_ns;
  int64_t last_drop_ns;
  uint64_t ident;
  int64_t native_id;
  char name[16];
  // Direct-mapped: where a name was last seen, and its copy.
  struct {
    const char* seen;
    uint64_t offset;
  } cache[256];
};

namespace {

constexpr size_t kMaxThreads = 4096;
// Few, so that a thousand threads with a few events each do not take all of
// the buffer.
constexpr size_t kChunkEvents = 64;
constexpr size_t kNameBytes = size_t{4} << 20;
constexpr uint64_t kLostName = 1; // offset 0 is the empty name

// A bump allocator over pages that the kernel provides at the first touch.
struct Region {
  std::byte* begin = nullptr;
  size_t size = 0;
  std::atomic<size_t> used{0};

  void* take(size_t bytes) {
    // Checked first, so that a full region does not count up for ever.
    if (used.load(std::memory_order_relaxed) + bytes > size) {
      return nullptr;
    }
    const size_t at = used.fetch_add(bytes, std::memory_order_relaxed);
    return at + bytes <= size ? begin + at : nullptr;
  }
};

struct Trace {
  std::byte* memory = nullptr;
  size_t memory_size = 0;
  size_t chunk_events = 0;
  Keep keep = Keep::kOldest;
  Region logs, chunks, names;
  std::atomic<ThreadLog*> first_log{nullptr};
  std::atomic<int64_t> threads_dropped{0};
  int64_t start_ns = 0;
  // Under `handing_over`:
  Chunk* closed_first = nullptr;
  Chunk* closed_last = nullptr;
  ThreadLog* unused_logs = nullptr; // of threads that have ended
  int64_t given_up = 0;             // events in chunks that were used again
  int64_t given_up_until_ns = 0;
};

Trace trace;
std::atomic<uint64_t> active_trace{0};
uint64_t last_trace = 0;
std::atomic<Recorder*> recorders{nullptr};
std::atomic<bool> handing_over{false};
pthread_key_t thread_end_key;

// initial-exec: one load instead of a call of __tls_get_addr per event.
#if defined(__ELF__)
__attribute__((tls_model("initial-exec")))
#endif
thread_local Recorder* this_recorder = nullptr;

size_t chunk_bytes() {
  return sizeof(Chunk) + trace.chunk_events * sizeof(Event);
}

// One turn per chunk, for a few instructions. A thread inside is in a write
// section, so that stop() waits for it.
class HandingOver {
 public:
  HandingOver() {
    while (handing_over.exchange(true, std::memory_order_acquire)) {
      sched_yield();
    }
  }
  ~HandingOver() {
    handing_over.store(false, std::memory_order_release);
  }
  HandingOver(const HandingOver&) = delete;
  HandingOver& operator=(const HandingOver&) = delete;
};

// The last chunk of this log is full, or its thread has ended: it may be used
// again, after those that were closed before.
void close_last(ThreadLog* log) {
  Chunk* chunk = log->last;
  chunk->end = log->cursor;
  chunk->closed_later = nullptr;
  (trace.closed_last ? trace.closed_last->closed_later : trace.closed_first) =
      chunk;
  trace.closed_last = chunk;
}

// Gives up the chunk that was closed first. It is its thread's oldest; the one
// that a thread writes to is not closed, so the last event of every thread
// that lives is kept, and with it its state.
Chunk* take_oldest() {
  Chunk* chunk = trace.closed_first;
  if (!chunk) {
    return nullptr;
  }
  trace.closed_first = chunk->closed_later;
  if (!trace.closed_first) {
    trace.closed_last = nullptr;
  }
  ThreadLog* owner = chunk->owner;
  owner->first = chunk->next;
  if (owner->last == chunk) {
    owner->last = nullptr;
  }
  if (owner->ended && !owner->first) {
    owner->next_unused = trace.unused_logs;
    trace.unused_logs = owner;
  }
  if (chunk->end != chunk->events) {
    trace.given_up += chunk->end - chunk->events;
    trace.given_up_until_ns =
        std::max(trace.given_up_until_ns, chunk->end[-1].time_ns);
  }
  return chunk;
}

// Runs when a thread that recorded something ends.
void on_thread_end(void* value) {
  auto* recorder = static_cast<Recorder*>(value);
  if (recorder->trace_id == active_trace.load()) {
    WriteSection section;
    if (section) {
      section->push(now_ns(), EventKind::kThreadEnd);
      ThreadLog* log = section->log;
      if (trace.keep == Keep::kNewest && log->last) {
        HandingOver turn;
        log->ended = true;
        close_last(log);
      }
    }
  }
  recorder->trace_id = 0;
  recorder->log = nullptr;
  this_recorder = nullptr;
  recorder->taken.store(false, std::memory_order_release);
}

Recorder* adopt_recorder() {
  static const bool made [[maybe_unused]] =
      pthread_key_create(&thread_end_key, on_thread_end) == 0;
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

// Of a thread that has ended and of which nothing is kept any more. Its names
// stay known.
ThreadLog* unused_log() {
  if (trace.keep == Keep::kOldest) {
    return nullptr;
  }
  HandingOver turn;
  ThreadLog* log = trace.unused_logs;
  if (log) {
    trace.unused_logs = log->next_unused;
    log->ended = false;
    log->last = nullptr;
    log->cursor = log->limit = nullptr;
  }
  return log;
}

// This thread's first event in this trace.
bool open_log(Recorder* recorder, uint64_t id) {
  ThreadLog* log = unused_log();
  const bool is_new = !log;
  if (is_new) {
    log = static_cast<ThreadLog*>(trace.logs.take(sizeof(ThreadLog)));
  }
  recorder->gil = GilState::kUnknown;
  recorder->log = log;
  if (!log) {
    trace.threads_dropped.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  recorder->trace_id = id;
  log->ident = static_cast<uint64_t>(
      reinterpret_cast<uintptr_t>(reinterpret_cast<void*>(pthread_self())));
  log->native_id = native_thread_id();
#if defined(__linux__)
  prctl(PR_GET_NAME, log->name);
#endif
  if (is_new) {
    log->next = trace.first_log.load();
    while (!trace.first_log.compare_exchange_weak(log->next, log)) {
    }
  }
  return true;
}

void append(ThreadLog* log, Chunk* chunk) {
  if (!chunk) {
    return;
  }
  chunk->next = nullptr;
  chunk->owner = log;
  if (log->last) {
    log->last->end = log->cursor;
    log->last->next = chunk;
  } else {
    log->first = chunk;
  }
  log->last = chunk;
}

Event* next_chunk(ThreadLog* log) {
  auto* chunk = static_cast<Chunk*>(trace.chunks.take(chunk_bytes()));
  if (trace.keep == Keep::kNewest) {
    HandingOver turn;
    if (log->last) {
      close_last(log);
    }
    chunk = chunk ? chunk : take_oldest();
    append(log, chunk);
  } else {
    append(log, chunk);
  }
  if (!chunk) {
    return nullptr;
  }
  log->cursor = chunk->events;
  log->limit = chunk->events + trace.chunk_events;
  return log->cursor;
}

ThreadEvents collect(ThreadLog* log) {
  ThreadEvents out{log->ident, log->native_id, log->name, log->dropped, {}};
  if (log->last) {
    log->last->end = log->cursor; // once more where the thread has ended
  }
  for (auto* chunk = log->first; chunk; chunk = chunk->next) {
    out.events.insert(out.events.end(), chunk->events, chunk->end);
  }
  return out;
}

void release_memory() {
  if (trace.memory) {
    munmap(trace.memory, trace.memory_size);
    trace.memory = nullptr;
  }
}

} // namespace

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

void Recorder::push(int64_t time_ns, EventKind kind, uint64_t name) {
  if (log->cursor == log->limit && !next_chunk(log)) [[unlikely]] {
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
  const auto key = reinterpret_cast<uintptr_t>(name);
  auto& entry = log->cache[(key >> 4 ^ key >> 12) & 255];
  const char* copies = reinterpret_cast<const char*>(trace.names.begin);
  // The text is compared too: an address can be used again for another name.
  if (entry.seen == name && std::strcmp(copies + entry.offset, name) == 0) {
    return entry.offset;
  }
  const size_t bytes = std::strlen(name) + 1;
  auto* copy = static_cast<char*>(trace.names.take(bytes));
  if (!copy) {
    return kLostName;
  }
  std::memcpy(copy, name, bytes);
  entry = {name, static_cast<uint64_t>(copy - copies)};
  return entry.offset;
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
  release_memory(); // of a trace abandoned in a fork's child
  trace.keep = keep;
  // Smaller ones for a small buffer, so that one thread does not take it all.
  trace.chunk_events = std::clamp<size_t>(max_events / 64, 1, kChunkEvents);
  const size_t chunks = max_events / trace.chunk_events * chunk_bytes();
  const size_t logs = kMaxThreads * sizeof(ThreadLog);
  trace.memory_size = chunks + logs + kNameBytes;
  void* memory = mmap(
      nullptr,
      trace.memory_size,
      PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      -1,
      0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  trace.memory = static_cast<std::byte*>(memory);
  const auto place = [](Region& region, std::byte* begin, size_t size) {
    region.begin = begin;
    region.size = size;
    region.used = 0;
  };
  place(trace.chunks, trace.memory, chunks);
  place(trace.logs, trace.memory + chunks, logs);
  place(trace.names, trace.memory + chunks + logs, kNameBytes);
  static constexpr char kFixed[] = "\0(name lost)";
  static_assert(kFixed[kLostName] == '(');
  std::memcpy(trace.names.take(sizeof(kFixed)), kFixed, sizeof(kFixed));
  trace.first_log = nullptr;
  trace.threads_dropped = 0;
  trace.closed_first = trace.closed_last = nullptr;
  trace.unused_logs = nullptr;
  trace.given_up = 0;
  trace.given_up_until_ns = 0;
  trace.start_ns = now_ns();
  active_trace.store(++last_trace, std::memory_order_seq_cst);
  return trace.start_ns;
}

EventLog stop() {
  active_trace.store(0, std::memory_order_seq_cst);
  for (auto* r = recorders.load(); r; r = r->next) {
    while (r->writing.load(std::memory_order_acquire)) {
      sched_yield();
    }
  }
  EventLog out;
  out.start_ns = trace.start_ns;
  out.stop_ns = now_ns();
  out.complete_from_ns = std::max(out.start_ns, trace.given_up_until_ns);
  out.complete_until_ns = out.stop_ns;
  out.dropped = trace.threads_dropped + trace.given_up;
  for (auto* log = trace.first_log.load(); log; log = log->next) {
    out.dropped += log->dropped;
    if (log->dropped && trace.keep == Keep::kNewest) {
      // There are more threads than chunks.
      out.complete_from_ns = std::max(out.complete_from_ns, log->last_drop_ns);
    } else if (log->dropped) {
      out.complete_until_ns =
          std::min(out.complete_until_ns, log->first_drop_ns);
    }
    out.threads.push_back(collect(log));
  }
  out.names.assign(
      reinterpret_cast<const char*>(trace.names.begin),
      std::min(trace.names.used.load(), trace.names.size));
  release_memory();
  return out;
}

void abandon() {
  active_trace.store(0, std::memory_order_seq_cst);
  handing_over = false;
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
