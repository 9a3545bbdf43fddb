// csrc/gil/trace/event_buffers.h: the memory that a trace's events lie in.
//
// Reserved at once, touched only when used. Each thread has a log of its own,
// a list of chunks; where the newest events are kept, a full buffer takes the
// chunk that was closed first. Whoever calls these, but for reserve(),
// release() and collect(), is in a WriteSection.
#pragma once

#include "trace/event_log.h"

#include <cstddef>
#include <cstdint>

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

namespace event_buffers {

/// Room for `max_events` of 16 bytes. Throws std::bad_alloc.
void reserve(size_t max_events, Keep keep);

/// Also of a trace that was abandoned in a fork's child.
void release();

/// A log for a thread's first event in this trace; null, and counted, where
/// there are too many threads.
ThreadLog* open_log();

/// The thread has written its last event.
void close_log(ThreadLog* log);

/// Room for one event more, at the cursor; false where there is none.
bool make_room(ThreadLog* log);

/// The offset of a copy of `name`; equal names mostly share one copy.
uint64_t intern(ThreadLog* log, const char* name);

/// Everything that is kept, and from when until when that is complete; `out`
/// has the start and the stop.
void collect(EventLog& out);

/// In the child of a fork: whose turn it was, is not here.
void forget_turns();

} // namespace event_buffers
} // namespace torchgil
