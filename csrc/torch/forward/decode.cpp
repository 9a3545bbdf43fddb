// csrc/torch/forward/decode.cpp: the instruction list, from Python to the
// program.
#include "decode.h"

#include "constants.h"

#include <c10/util/Exception.h>

#include <limits>
#include <optional>
#include <string>
#include <utility>

namespace torchgil::forward {
namespace {

namespace py = pybind11;
using c10::IValue;

Operand::Coerce coercion(const c10::TypePtr& type) {
  if (const auto optional = type->cast<c10::OptionalType>()) {
    return coercion(optional->getElementType());
  }
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return Operand::Coerce::kTensor;
    case c10::TypeKind::FloatType:
      return Operand::Coerce::kDouble;
    case c10::TypeKind::IntType:
      return Operand::Coerce::kInt;
    default:
      return Operand::Coerce::kNone;
  }
}

Operand decode_list(
    const py::list& elements,
    const c10::TypePtr& element_type,
    Program& program) {
  const c10::Argument element("element", element_type);
  std::vector<Operand> operands;
  bool constant = true;
  for (const auto encoded : elements) {
    operands.push_back(decode_operand(encoded, &element, program));
    constant = constant && operands.back().kind == Operand::Kind::kConstant;
  }
  const auto index = program.add_list(element_type, std::move(operands));
  if (constant) { // weights of an LSTM, say: one list for every call
    return {
        Operand::Kind::kConstant, program.add_constant(program.fold(index))};
  }
  return {Operand::Kind::kList, index};
}

} // namespace

Operand decode_operand(
    py::handle encoded, const c10::Argument* argument, Program& program) {
  const auto pair = encoded.cast<py::tuple>();
  const auto kind = pair[0].cast<std::string>();
  const auto coerce =
      argument == nullptr ? Operand::Coerce::kNone : coercion(argument->type());
  const auto index = [&] {
    const auto number = to_int64(pair[1]);
    TORCH_CHECK_VALUE(
        number >= 0 && number <= std::numeric_limits<uint32_t>::max(),
        "no ",
        kind,
        " ",
        number);
    return static_cast<uint32_t>(number);
  };
  if (kind == "slot") {
    return {Operand::Kind::kSlot, index(), coerce};
  }
  if (kind == "last") {
    return {Operand::Kind::kLast, index(), coerce};
  }
  if (kind == "input") {
    return {Operand::Kind::kInput, index(), coerce};
  }
  if (kind == "state") {
    return {Operand::Kind::kState, index()};
  }
  if (kind == "weight") {
    return {Operand::Kind::kConstant, program.weight(index())};
  }
  if (kind == "list") {
    auto element = c10::TypePtr(c10::AnyType::get());
    if (argument != nullptr) {
      auto type = argument->type();
      if (const auto optional = type->cast<c10::OptionalType>()) {
        type = optional->getElementType();
      }
      const auto list = type->cast<c10::ListType>();
      TORCH_CHECK_TYPE(
          list, "argument '", argument->name(), "' must be no list, got one");
      element = list->getElementType();
    }
    return decode_list(pair[1], element, program);
  }
  IValue constant;
  if (kind == "default") {
    TORCH_CHECK_VALUE(argument != nullptr, "no argument has a default here");
    TORCH_CHECK_VALUE(
        argument->default_value().has_value(),
        "argument '",
        argument->name(),
        "' is missing");
    constant = *argument->default_value();
  } else if (argument != nullptr) {
    constant = to_ivalue(pair[1], argument->real_type());
  } else {
    constant = to_ivalue(pair[1]);
  }
  return {Operand::Kind::kConstant, program.add_constant(std::move(constant))};
}

Program::Code decode_code(
    const py::list& encoded, Program& program, std::string& node) {
  Program::Code code;
  for (const auto handle : encoded) {
    const auto fields = handle.cast<py::dict>();
    Instruction instruction;
    if (fields.contains("grad")) {
      instruction.mode = GradMode{fields["grad"].cast<bool>()};
      instruction.body = decode_code(fields["body"], program, node);
    } else if (fields.contains("autocast")) {
      const auto mode = fields["autocast"].cast<py::tuple>();
      instruction.mode = Autocast{
          c10::Device(mode[0].cast<std::string>()).type(),
          static_cast<c10::ScalarType>(
              to_ivalue(mode[1], c10::ScalarTypeType::get()).toInt()),
          mode[2].cast<bool>()};
      instruction.body = decode_code(fields["body"], program, node);
    } else {
      instruction.name = fields["name"].cast<std::string>();
      instruction.where = fields["where"].cast<std::string>();
      node = instruction.title();
      const auto op = fields["op"].cast<std::string>();
      const c10::FunctionSchema* schema = nullptr;
      if (fields["overload"].is_none()) {
        instruction.builtin = find_builtin(op);
        TORCH_INTERNAL_ASSERT(instruction.builtin, "no builtin ", op);
      } else {
        instruction.op = c10::Dispatcher::singleton().findSchemaOrThrow(
            op.c_str(), fields["overload"].cast<std::string>().c_str());
        schema = &instruction.op->schema();
      }
      const py::sequence operands = fields["operands"];
      const size_t wanted =
          schema ? schema->arguments().size() : operands.size();
      TORCH_CHECK_VALUE(
          operands.size() == wanted,
          op,
          " takes ",
          wanted,
          " arguments, got ",
          operands.size());
      size_t i = 0;
      for (const auto o : operands) {
        instruction.operands.push_back(decode_operand(
            o, schema ? &schema->arguments()[i++] : nullptr, program));
      }
      for (const auto slot : fields["outputs"]) {
        const auto number = slot.is_none() ? -1 : to_int64(slot);
        TORCH_CHECK_VALUE(
            slot.is_none() ||
                (number >= 0 && number <= std::numeric_limits<int32_t>::max()),
            "no slot ",
            number);
        instruction.outputs.push_back(static_cast<int32_t>(number));
      }
      instruction.unpack = fields["unpack"].cast<bool>();
      instruction.unsafe_writes =
          fields["unsafe_writes"].cast<std::vector<uint32_t>>();
    }
    code.push_back(std::move(instruction));
  }
  return code;
}

} // namespace torchgil::forward
