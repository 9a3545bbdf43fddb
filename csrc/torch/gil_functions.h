// csrc/torch/gil_functions.h: the other half's functions.
#pragma once

#include "gil/functions.h"

namespace torchgil {

/// Set before anything else of this half can be called.
inline constinit const GilFunctions* gil = nullptr;

/// As the extension is loaded. Throws where torchgil._gil is of another
/// version. GIL: held.
void find_gil_functions();

} // namespace torchgil
