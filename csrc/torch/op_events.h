// csrc/torch/op_events.h: start and end of every torch op.
#pragma once

namespace torchgil::op_events {

/// Has a trace that wants torch's ops be told of them, on every thread. While
/// one runs each op pays for it, and at no other time. GIL: held.
void register_source();

} // namespace torchgil::op_events
