// csrc/gil/trace/event_buffers.cpp: the memory that a trace's events lie in.
#include "trace/event_buffers.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

namespace torchgil::event_buffers {
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

struct Buffers {
  // Written by reserve() and release(), while no trace runs; read by writers.
  std::byte* memory = nullptr;
  size_t memory_size = 0;
  size_t chunk_events = 0;
  Keep keep = Keep::kOldest;
  // Any writer, by atomic operations:
  Region logs, chunks, names;
  std::atomic<ThreadLog*> first_log{nullptr};
  std::atomic<int64_t> threads_dropped{0};
  // With `handing_over` held (HandingOver):
  Chunk* closed_first = nullptr;
  Chunk* closed_last = nullptr;
  ThreadLog* unused_logs = nullptr; // of threads that have ended
  int64_t given_up = 0;             // events in chunks that were used again
  int64_t given_up_until_ns = 0;
};

Buffers buffers;
std::atomic<bool> handing_over{false};

size_t chunk_bytes() {
  return sizeof(Chunk) + buffers.chunk_events * sizeof(Event);
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
  (buffers.closed_last ? buffers.closed_last->closed_later
                       : buffers.closed_first) = chunk;
  buffers.closed_last = chunk;
}

// Gives up the chunk that was closed first. It is its thread's oldest; the one
// that a thread writes to is not closed, so the last event of every thread
// that lives is kept, and with it its state.
Chunk* take_oldest() {
  Chunk* chunk = buffers.closed_first;
  if (!chunk) {
    return nullptr;
  }
  buffers.closed_first = chunk->closed_later;
  if (!buffers.closed_first) {
    buffers.closed_last = nullptr;
  }
  ThreadLog* owner = chunk->owner;
  owner->first = chunk->next;
  if (owner->last == chunk) {
    owner->last = nullptr;
  }
  if (owner->ended && !owner->first) {
    owner->next_unused = buffers.unused_logs;
    buffers.unused_logs = owner;
  }
  if (chunk->end != chunk->events) {
    buffers.given_up += chunk->end - chunk->events;
    buffers.given_up_until_ns =
        std::max(buffers.given_up_until_ns, chunk->end[-1].time_ns);
  }
  return chunk;
}

// Of a thread that has ended and of which nothing is kept any more. Its names
// stay known.
ThreadLog* unused_log() {
  if (buffers.keep == Keep::kOldest) {
    return nullptr;
  }
  HandingOver turn;
  ThreadLog* log = buffers.unused_logs;
  if (log) {
    buffers.unused_logs = log->next_unused;
    log->ended = false;
    log->last = nullptr;
    log->cursor = log->limit = nullptr;
  }
  return log;
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

ThreadEvents events_of(ThreadLog* log) {
  ThreadEvents out{log->ident, log->native_id, log->name, log->dropped, {}};
  if (log->last) {
    log->last->end = log->cursor; // once more where the thread has ended
  }
  for (auto* chunk = log->first; chunk; chunk = chunk->next) {
    out.events.insert(out.events.end(), chunk->events, chunk->end);
  }
  return out;
}

} // namespace

void reserve(size_t max_events, Keep keep) {
  release(); // of a trace abandoned in a fork's child
  buffers.keep = keep;
  // Smaller ones for a small buffer, so that one thread does not take it all.
  buffers.chunk_events = std::clamp<size_t>(max_events / 64, 1, kChunkEvents);
  const size_t chunks = max_events / buffers.chunk_events * chunk_bytes();
  const size_t logs = kMaxThreads * sizeof(ThreadLog);
  buffers.memory_size = chunks + logs + kNameBytes;
  void* memory = mmap(
      nullptr,
      buffers.memory_size,
      PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      -1,
      0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  buffers.memory = static_cast<std::byte*>(memory);
  const auto place = [](Region& region, std::byte* begin, size_t size) {
    region.begin = begin;
    region.size = size;
    region.used = 0;
  };
  place(buffers.chunks, buffers.memory, chunks);
  place(buffers.logs, buffers.memory + chunks, logs);
  place(buffers.names, buffers.memory + chunks + logs, kNameBytes);
  static constexpr char kFixed[] = "\0(name lost)";
  static_assert(kFixed[kLostName] == '(');
  std::memcpy(buffers.names.take(sizeof(kFixed)), kFixed, sizeof(kFixed));
  buffers.first_log = nullptr;
  buffers.threads_dropped = 0;
  buffers.closed_first = buffers.closed_last = nullptr;
  buffers.unused_logs = nullptr;
  buffers.given_up = 0;
  buffers.given_up_until_ns = 0;
}

void release() {
  if (buffers.memory) {
    munmap(buffers.memory, buffers.memory_size);
    buffers.memory = nullptr;
  }
}

ThreadLog* open_log() {
  if (ThreadLog* log = unused_log()) {
    return log;
  }
  auto* log = static_cast<ThreadLog*>(buffers.logs.take(sizeof(ThreadLog)));
  if (!log) {
    buffers.threads_dropped.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
  log->next = buffers.first_log.load();
  while (!buffers.first_log.compare_exchange_weak(log->next, log)) {
  }
  return log;
}

void close_log(ThreadLog* log) {
  if (buffers.keep == Keep::kNewest && log->last) {
    HandingOver turn;
    log->ended = true;
    close_last(log);
  }
}

bool make_room(ThreadLog* log) {
  auto* chunk = static_cast<Chunk*>(buffers.chunks.take(chunk_bytes()));
  if (buffers.keep == Keep::kNewest) {
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
    return false;
  }
  log->cursor = chunk->events;
  log->limit = chunk->events + buffers.chunk_events;
  return true;
}

uint64_t intern(ThreadLog* log, const char* name) {
  const auto key = reinterpret_cast<uintptr_t>(name);
  auto& entry = log->cache[(key >> 4 ^ key >> 12) & 255];
  const char* copies = reinterpret_cast<const char*>(buffers.names.begin);
  // The text is compared too: an address can be used again for another name.
  if (entry.seen == name && std::strcmp(copies + entry.offset, name) == 0) {
    return entry.offset;
  }
  const size_t bytes = std::strlen(name) + 1;
  auto* copy = static_cast<char*>(buffers.names.take(bytes));
  if (!copy) {
    return kLostName;
  }
  std::memcpy(copy, name, bytes);
  entry = {name, static_cast<uint64_t>(copy - copies)};
  return entry.offset;
}

void collect(EventLog& out) {
  out.complete_from_ns = std::max(out.start_ns, buffers.given_up_until_ns);
  out.complete_until_ns = out.stop_ns;
  out.dropped = buffers.threads_dropped + buffers.given_up;
  for (auto* log = buffers.first_log.load(); log; log = log->next) {
    out.dropped += log->dropped;
    if (log->dropped && buffers.keep == Keep::kNewest) {
      // There are more threads than chunks.
      out.complete_from_ns = std::max(out.complete_from_ns, log->last_drop_ns);
    } else if (log->dropped) {
      out.complete_until_ns =
          std::min(out.complete_until_ns, log->first_drop_ns);
    }
    out.threads.push_back(events_of(log));
  }
  out.names.assign(
      reinterpret_cast<const char*>(buffers.names.begin),
      std::min(buffers.names.used.load(), buffers.names.size));
}

void forget_turns() {
  handing_over = false;
}

} // namespace torchgil::event_buffers
