// csrc/tracing/op_events.h: start and end of every torch op.
#pragma once

namespace torchgil::op_events {

/// Registers a callback for dispatched ops and user scopes, on every thread.
/// While it is registered each op pays for it, so stop() removes it.
void start();
void stop();

} // namespace torchgil::op_events
