// csrc/torch/op_events.cpp: start and end of every torch op.
#include "op_events.h"

#include <ATen/record_function.h>

#include <memory>

#include "gil_functions.h"

namespace torchgil::op_events {
namespace {

at::CallbackHandle callback = at::INVALID_CALLBACK_HANDLE;

// GIL: held or not, on any thread, Python's or not.
std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& op) {
  gil->op_starts(op.name(), op.scope() == at::RecordScope::FUNCTION);
  return nullptr;
}

void on_end(const at::RecordFunction& op, at::ObserverContext*) {
  gil->op_ends(op.isAsync() ? op.name() : nullptr);
}

void stop() {
  if (callback != at::INVALID_CALLBACK_HANDLE) {
    at::removeCallback(callback);
    callback = at::INVALID_CALLBACK_HANDLE;
  }
}

void start() {
  stop();
  callback = at::addGlobalCallback(
      at::RecordFunctionCallback(&on_start, &on_end)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
}

} // namespace

void register_source() {
  gil->set_op_source(&start, &stop);
}

} // namespace torchgil::op_events
