// csrc/gil/trace/event_log.h: per-thread buffers of time-stamped events.
#pragma once

#include "clock.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace torchgil {

/// The values are part of the interface with torchgil/tracing/_recording.py.
enum class EventKind : uint8_t {
  kRelease = 1,       // a window opens
  kForcedRelease = 2, // the interpreter switched this thread out
  kRequest = 3,       // asks for the GIL
  kAcquire = 4,       // has the GIL
  kOpStart = 5,       // a torch op starts, the GIL not held by this thread
  kOpStartHeld = 6,   // the same, the GIL held
  kOpEnd = 7,
  kMark = 8, // an audited call starts or ends
  kThreadEnd = 9,
  kScopeStart = 10, // as kOpStart, of a user's record_function
  kScopeStartHeld = 11,
  kCollectionStart = 12, // of garbage; with its generation in place of a name
  kCollectionEnd = 13,
};

struct Event {
  int64_t time_ns; // CLOCK_MONOTONIC
  uint64_t data;   // kind in the low byte, offset of the name above it
};

/// Which events stay where the buffer is too small for all.
enum class Keep : uint8_t { kOldest, kNewest };

struct ThreadLog;

/// One thread's writer. Taken over by a later thread, never freed: a hook may
/// look at it at any time.
struct Recorder {
  std::atomic<bool> writing{false};
  std::atomic<bool> taken{false};
  uint64_t trace_id = 0;
  ThreadLog* log = nullptr;
  Recorder* next = nullptr;

  // No lock, no allocation; drops, and counts, when the buffer is full.
  void push(int64_t time_ns, EventKind kind, uint64_t name = 0);
  /// Corrects the last event, if it is of kind `from`.
  void change_last(EventKind from, EventKind to);
  /// Copies a name into the trace; equal names mostly share one copy.
  uint64_t intern(const char* name);
};

/// Nothing while no trace runs; else this thread's recorder, and the end of
/// the trace waits until the section is left.
class WriteSection {
 public:
  WriteSection();
  ~WriteSection() {
    if (recorder_) {
      recorder_->writing.store(false, std::memory_order_release);
    }
  }
  WriteSection(const WriteSection&) = delete;
  WriteSection& operator=(const WriteSection&) = delete;
  explicit operator bool() const {
    return recorder_ != nullptr;
  }
  Recorder* operator->() const {
    return recorder_;
  }

 private:
  Recorder* recorder_ = nullptr;
};

struct ThreadEvents {
  uint64_t ident; // pthread_self(), Python's threading.get_ident()
  int64_t native_id;
  std::string name; // the kernel's name for it
  int64_t dropped;
  std::vector<Event> events;
};

struct EventLog {
  int64_t start_ns = 0;
  int64_t stop_ns = 0;
  int64_t complete_from_ns = 0;  // the start, or the last that was given up
  int64_t complete_until_ns = 0; // the first drop, or the stop
  int64_t dropped = 0;
  std::string names; // NUL-terminated, found by Event's offset
  std::vector<ThreadEvents> threads;
};

namespace event_log {

bool running();

/// Reserves the buffers (`max_events` of 16 bytes, touched only when used) and
/// starts recording. Returns the time of the start.
int64_t start(size_t max_events, Keep keep);

/// Ends recording on all threads. Waits for writers, which never block.
void stop();

/// What was recorded until stop(), and frees the buffers. It copies all of it,
/// which takes long enough to let others run: call it without the GIL.
EventLog collect();

/// In the child of a fork: forgets the trace, which is the parent's.
void abandon();

} // namespace event_log
} // namespace torchgil
