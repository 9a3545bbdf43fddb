// csrc/tracing/op_events.cpp: start and end of every torch op.
#include "tracing/op_events.h"

#include <torchgil/gil.h>
#include "tracing/event_log.h"

#include <ATen/record_function.h>

#include <memory>

namespace torchgil::op_events {
namespace {

at::CallbackHandle callback = at::INVALID_CALLBACK_HANDLE;

// GIL: held or not, on any thread, Python's or not.
std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& op) {
  WriteSection r;
  if (r) {
    const bool is_op = op.scope() == at::RecordScope::FUNCTION;
    const auto free = is_op ? EventKind::kOpStart : EventKind::kScopeStart;
    const auto held =
        is_op ? EventKind::kOpStartHeld : EventKind::kScopeStartHeld;
    const uint64_t name = r->intern(op.name());
    r->push(now_ns(), gil_held() ? held : free, name);
  }
  return nullptr;
}

void on_end(const at::RecordFunction& op, at::ObserverContext*) {
  const int64_t now = now_ns();
  WriteSection r;
  if (r) {
    // An op ends where it began, after those inside it, and needs no name to
    // be found again; only an asynchronous one may end on another thread.
    r->push(now, EventKind::kOpEnd, op.isAsync() ? r->intern(op.name()) : 0);
  }
}

} // namespace

void start() {
  stop();
  callback = at::addGlobalCallback(
      at::RecordFunctionCallback(&on_start, &on_end)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
}

void stop() {
  if (callback != at::INVALID_CALLBACK_HANDLE) {
    at::removeCallback(callback);
    callback = at::INVALID_CALLBACK_HANDLE;
  }
}

} // namespace torchgil::op_events
