// csrc/gil/trace/gil_state.cpp: see gil_state.h.
#include "trace/gil_state.h"

#include "initial_exec.h"

#include <sys/resource.h>

namespace torchgil::gil_events {
namespace {

// What passes no entry point is a window or a forced switch. After a forced
// switch another thread has had the GIL, and the thread asks again at once: it
// has not slept meanwhile, nor used more of a core than this. The time that it
// was ready and had no core says nothing: on two cores with a load of 5, a
// limit on the time by the clock took 6 % of forced switches for windows, this
// one 2 of 6,900.
constexpr int64_t kSwitchUs = 10;

} // namespace

std::atomic<uint64_t> acquires{0};

TORCHGIL_INITIAL_EXEC
constinit thread_local Seen seen_of_this_thread;

Usage usage() {
#if defined(RUSAGE_THREAD)
  rusage u;
  getrusage(RUSAGE_THREAD, &u);
  return {
      (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1'000'000LL +
          u.ru_utime.tv_usec + u.ru_stime.tv_usec,
      u.ru_nvcsw};
#else
  return {now_ns() / 1000, 0};
#endif
}

void note_release(EventKind kind, GilState next) {
  const int64_t now = now_ns(); // before: no thread can acquire earlier
  Section r;
  if (r &&
      (r.seen.gil == GilState::kHolds || r.seen.gil == GilState::kUnknown)) {
    r->push(now, kind);
    r.seen.gil = next;
  }
}

void note_request() {
  Section r;
  if (r && r.seen.gil != GilState::kHolds && r.seen.gil != GilState::kAsks) {
    if (r.seen.gil == GilState::kOutByLock) {
      // A thread that was switched out does not come this way.
      r->change_last(EventKind::kForcedRelease, EventKind::kRelease);
    }
    r->push(now_ns(), EventKind::kRequest);
    r.seen.gil = GilState::kAsks;
  }
}

void note_acquire() {
  Section r;
  if (r && r.seen.gil != GilState::kHolds) {
    r->push(now_ns(), EventKind::kAcquire);
    r.seen.gil = GilState::kHolds;
    acquires.store(
        acquires.load(std::memory_order_relaxed) + 1,
        std::memory_order_relaxed);
  }
}

void note_request_by_lock() {
  Section r;
  if (!r || r.seen.gil == GilState::kHolds ||
      r.seen.gil == GilState::kReleasing || r.seen.gil == GilState::kAsks) {
    return;
  }
  const int64_t now = now_ns();
  if (r.seen.gil == GilState::kOutByLock) {
    bool forced = r.seen.acquires != acquires;
    if (forced) {
      const Usage used = usage();
      forced = used.sleeps == r.seen.sleeps &&
          used.on_core_us - r.seen.let_go_us <= kSwitchUs;
    }
    const EventKind kinds[] = {EventKind::kRelease, EventKind::kForcedRelease};
    r->change_last(kinds[!forced], kinds[forced]);
  }
  r->push(now, EventKind::kRequest);
  r.seen.gil = GilState::kAsks;
}

} // namespace torchgil::gil_events
