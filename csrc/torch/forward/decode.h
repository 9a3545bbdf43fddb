// csrc/torch/forward/decode.h: the instruction list, from Python to the
// program.
#pragma once

#include "program.h"

#include <torch/csrc/utils/pybind.h>

#include <string>

namespace torchgil::forward {

/// One operand as torchgil/forward/_graph.py encodes it: (kind, payload).
/// Constants are converted here, once, by the type of the schema's argument;
/// `argument` is nullptr for a builtin's operand.
/// GIL: held.
Operand decode_operand(
    pybind11::handle encoded, const c10::Argument* argument, Program& program);

/// Instructions, each a dict; `node` names the one that is read, for errors.
/// GIL: held.
Program::Code decode_code(
    const pybind11::list& encoded, Program& program, std::string& node);

} // namespace torchgil::forward
