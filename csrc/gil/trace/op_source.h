// csrc/gil/trace/op_source.h: torch's ops, told by the half that knows torch.
#pragma once

namespace torchgil::op_source {

/// See GilFunctions in functions.h. GIL: held.
void set(void (*start)(), void (*stop)());

/// See GilFunctions. GIL: held or not.
void op_starts(const char* name, bool is_op);
void op_ends(const char* name);

/// A trace that wants torch's ops begins or ends. Where the source comes later,
/// it starts then. GIL: held.
void start();
void stop();

} // namespace torchgil::op_source
