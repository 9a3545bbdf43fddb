// csrc/gil/watch/native_stack.h: in whose native code a thread sleeps.
#pragma once

#include <string>
#include <vector>

#include "os_thread.h"

namespace torchgil {

/// The shared objects whose functions stand on the stack of a thread that
/// sleeps in the kernel, the innermost first, up to the interpreter, which
/// called the last of them. Those of the C and C++ runtimes are left out.
///
/// The stack is not unwound, which would need each object's tables: each word
/// on it that points behind a call instruction counts as a return address. So
/// an object can be named whose call has ended a moment before. Empty where the
/// interpreter itself is in the call, and for a thread that runs. GIL: not
/// needed.
std::vector<std::string> objects_on_stack(const SystemCall& call);

} // namespace torchgil
