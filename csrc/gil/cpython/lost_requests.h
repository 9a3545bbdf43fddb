// csrc/gil/cpython/lost_requests.h: whether a request for the GIL can get lost.
#pragma once

#include <patchlevel.h>

namespace torchgil {

/// CPython 3.12 alone can lose a request: a thread that was just given the GIL
/// looks once more for what it is asked, without the GIL's mutex, and may write
/// what it saw over a request made since (COMPUTE_EVAL_BREAKER at the end of
/// _Py_HandlePending()).
inline constexpr bool kRequestsMayBeLost =
    PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030D0000;

} // namespace torchgil
