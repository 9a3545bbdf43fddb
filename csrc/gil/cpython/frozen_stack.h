// csrc/gil/cpython/frozen_stack.h: the Python frames of a thread that does not
// move, read by another one, without the GIL.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace torchgil {

/// One Python frame. The strings are UTF-8, half surrogate pairs included.
struct FrozenFrame {
  std::string filename;
  int line = 0; // 0: not known
  std::string function;
};

struct FrozenStack {
  bool known = false; // false: it could not be read, or it moved meanwhile
  bool cut = false;   // there are more frames, further out
  std::vector<FrozenFrame> frames; // the innermost first
};

/// The frames of a thread that does not run Python code at the moment, since it
/// is in a call of C, or waits for the GIL. Nothing is followed: each object is
/// copied from where it lies, which may fail, and what was read is believed
/// only if the chain of frames is the same before and after.
/// GIL: not needed.
FrozenStack frozen_stack(const void* thread_state, size_t most_frames);

/// Whether the calling thread's own frames, read so, are what the interpreter
/// says that they are: the layout of its structures is not public, and the
/// system may not let them be read. GIL: held; nothing else runs meanwhile.
bool can_read_frozen_stacks();

} // namespace torchgil
