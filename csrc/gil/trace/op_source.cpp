// csrc/gil/trace/op_source.cpp: see op_source.h.
#include "trace/op_source.h"

#include <torchgil/gil.h>
#include "trace/event_log.h"

namespace torchgil::op_source {
namespace {

// GIL: held wherever these are read or written.
void (*source_start)() = nullptr;
void (*source_stop)() = nullptr;
bool wanted = false;

} // namespace

void set(void (*start)(), void (*stop)()) {
  source_start = start;
  source_stop = stop;
  if (wanted) {
    source_start();
  }
}

void start() {
  wanted = true;
  if (source_start) {
    source_start();
  }
}

void stop() {
  wanted = false;
  if (source_stop) {
    source_stop();
  }
}

void op_starts(const char* name, bool is_op) {
  WriteSection r;
  if (r) {
    const auto free = is_op ? EventKind::kOpStart : EventKind::kScopeStart;
    const auto held =
        is_op ? EventKind::kOpStartHeld : EventKind::kScopeStartHeld;
    const uint64_t interned = r->intern(name);
    r->push(now_ns(), gil_held() ? held : free, interned);
  }
}

// An op ends where it began, after those inside it, and needs no name to be
// found again.
void op_ends(const char* name) {
  const int64_t now = now_ns();
  WriteSection r;
  if (r) {
    r->push(now, EventKind::kOpEnd, name ? r->intern(name) : 0);
  }
}

} // namespace torchgil::op_source
