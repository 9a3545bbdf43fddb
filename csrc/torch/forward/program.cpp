// csrc/torch/forward/program.cpp: runs an exported graph over the dispatcher.
//
// A call has one frame: the slots, the operand stack that the kernels read and
// write, and nothing else that changes. Values are moved onto the stack at
// their last use, so that memory is freed where the kernel drops it.
#include "program.h"

#include <ATen/ScalarOps.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/List.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace torchgil::forward {
namespace {

using c10::IValue;

/// Autocast as the region wants it, and as it was after.
class AutocastGuard {
 public:
  explicit AutocastGuard(const Autocast& mode)
      : device_type_(mode.device_type),
        enabled_(at::autocast::is_autocast_enabled(device_type_)),
        dtype_(at::autocast::get_autocast_dtype(device_type_)),
        cache_enabled_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_enabled(device_type_, mode.enabled);
    at::autocast::set_autocast_dtype(device_type_, mode.dtype);
    // The cache is one for the process, behind a lock, and would keep casts
    // made under inference mode for a thread that trains.
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~AutocastGuard() {
    at::autocast::set_autocast_cache_enabled(cache_enabled_);
    at::autocast::set_autocast_dtype(device_type_, dtype_);
    at::autocast::set_autocast_enabled(device_type_, enabled_);
  }
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  c10::DeviceType device_type_;
  bool enabled_;
  at::ScalarType dtype_;
  bool cache_enabled_;
};

/// A number where a tensor is wanted, as torch.ops makes it: it takes part in
/// type promotion as a number.
at::Tensor number_as_tensor(const IValue& number) {
  auto tensor = at::scalar_to_tensor(number.toScalar());
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

bool share_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.has_storage() && b.has_storage() &&
      a.storage().is_alias_of(b.storage());
}

/// Whether they are the same elements in the same memory.
bool same_place(const at::Tensor& a, const at::Tensor& b) {
  return share_memory(a, b) && a.storage_offset() == b.storage_offset() &&
      a.dtype() == b.dtype() && a.sizes() == b.sizes() &&
      a.strides() == b.strides();
}

IValue coerced(IValue value, Operand::Coerce coerce) {
  switch (coerce) {
    case Operand::Coerce::kNone:
      break;
    case Operand::Coerce::kInt:
      if (value.isBool()) {
        return static_cast<int64_t>(value.toBool());
      }
      break;
    case Operand::Coerce::kDouble:
      if (value.isInt()) {
        return static_cast<double>(value.toInt());
      }
      break;
    case Operand::Coerce::kTensor:
      if (value.isScalar()) {
        return number_as_tensor(value);
      }
      break;
  }
  return value;
}

} // namespace

struct Program::Frame {
  c10::ArrayRef<IValue> inputs;
  c10::ArrayRef<IValue> state;
  std::vector<IValue> slots;
  torch::jit::Stack stack;
  const Instruction*& current;
  /// The weights' and the inputs'; made where the first write asks for it.
  std::optional<Memory> shared = {};
};

uint32_t Program::add_constant(IValue value) {
  constants_.push_back(std::move(value));
  return constants_.size() - 1;
}

uint32_t Program::add_weight(std::string name, const at::Tensor& weight) {
  weight_constants_.push_back(add_constant(weight));
  return weights_.add(std::move(name), weight);
}

uint32_t Program::weight(uint32_t number) const {
  TORCH_CHECK_VALUE(number < weight_constants_.size(), "no weight ", number);
  return weight_constants_[number];
}

uint32_t Program::add_list(
    c10::TypePtr element_type, std::vector<Operand> elements) {
  lists_.push_back({std::move(element_type), std::move(elements)});
  return lists_.size() - 1;
}

void Program::count_slots(const Code& code, size_t& results) {
  for (const auto& instruction : code) {
    count_slots(instruction.body, results);
    results += instruction.outputs.size();
    for (const auto slot : instruction.outputs) {
      num_slots_ = std::max(num_slots_, static_cast<uint32_t>(slot) + 1);
    }
  }
}

void Program::check(const Operand& operand, Live& live) {
  switch (operand.kind) {
    case Operand::Kind::kSlot:
    case Operand::Kind::kLast:
      TORCH_CHECK_VALUE(
          operand.index < live.size() && live[operand.index],
          "slot ",
          operand.index,
          " is read, and has no value");
      live[operand.index] = operand.kind == Operand::Kind::kSlot;
      break;
    case Operand::Kind::kInput:
      num_inputs_ = std::max(num_inputs_, size_t{operand.index} + 1);
      break;
    case Operand::Kind::kState:
      num_state_ = std::max(num_state_, size_t{operand.index} + 1);
      break;
    case Operand::Kind::kConstant:
      TORCH_INTERNAL_ASSERT(operand.index < constants_.size());
      break;
    case Operand::Kind::kList:
      for (const auto& element : lists_[operand.index].elements) {
        check(element, live);
      }
      break;
  }
}

void Program::check(const Code& code, Live& live) {
  for (const auto& instruction : code) {
    check(instruction.body, live);
    for (const auto& operand : instruction.operands) {
      check(operand, live);
    }
    for (const auto argument : instruction.unsafe_writes) {
      TORCH_CHECK_VALUE(
          argument < instruction.operands.size(),
          instruction.name,
          " writes to argument ",
          argument,
          ", which it has not");
    }
    const auto& outputs = instruction.outputs;
    // How many a list has that is unpacked, is known when it is there.
    const size_t results = instruction.unpack ? outputs.size()
        : instruction.op ? instruction.op->schema().returns().size()
                         : 1;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i] >= 0) {
        TORCH_CHECK_VALUE(i < results, instruction.name, " has no result ", i);
        live[outputs[i]] = true;
      }
    }
  }
}

void Program::set_code(Code code) {
  code_.clear(); // nothing runs of what is refused
  outputs_.clear();
  new_state_.clear();
  num_slots_ = 0;
  num_inputs_ = num_state_ = 0;
  size_t results = 0;
  count_slots(code, results);
  TORCH_CHECK_VALUE( // else one number would take all memory
      num_slots_ <= results, "no slot ", num_slots_ - 1);
  live_.assign(num_slots_, false);
  check(code, live_);
  code_ = std::move(code);
}

void Program::set_outputs(std::vector<Operand> outputs) {
  Live live = live_;
  for (const auto& output : outputs) {
    check(output, live);
  }
  outputs_ = std::move(outputs);
  new_state_.clear();
}

void Program::set_new_state(std::vector<uint32_t> new_state) {
  TORCH_CHECK_VALUE(
      new_state.size() <= outputs_.size(), "too few outputs for the state");
  for (const auto number : new_state) {
    num_state_ = std::max(num_state_, size_t{number} + 1);
  }
  new_state_ = std::move(new_state);
}

void Program::settle(std::vector<IValue>& results, const Frame& frame) const {
  const auto first = results.size() - new_state_.size();
  std::vector<std::pair<at::Tensor, size_t>> replaced;
  for (size_t i = 0; i < new_state_.size(); ++i) {
    const auto& target = frame.state[new_state_[i]].toTensor();
    if (!same_place(target, results[first + i].toTensor())) {
      replaced.emplace_back(target, first + i);
    }
  }
  if (!replaced.empty()) {
    for (auto& result : results) {
      const auto shared = [&](const auto& entry) {
        return share_memory(entry.first, result.toTensor());
      };
      if (result.isTensor() &&
          std::any_of(replaced.begin(), replaced.end(), shared)) {
        result = result.toTensor().clone();
      }
    }
  }
  for (const auto& [target, place] : replaced) {
    target.copy_(results[place].toTensor());
  }
  results.resize(first);
  for (auto& result : results) {
    const auto same = [&](const IValue& held) {
      return held.toTensor().is_same(result.toTensor());
    };
    if (result.isTensor() &&
        std::any_of(frame.state.begin(), frame.state.end(), same)) {
      result = result.toTensor().detach();
    }
  }
}

IValue Program::read(const Operand& operand, Frame& frame) const {
  switch (operand.kind) {
    case Operand::Kind::kSlot:
      return coerced(frame.slots[operand.index], operand.coerce);
    case Operand::Kind::kLast:
      return coerced(std::move(frame.slots[operand.index]), operand.coerce);
    case Operand::Kind::kInput:
      return coerced(frame.inputs[operand.index], operand.coerce);
    case Operand::Kind::kConstant:
      return constants_[operand.index];
    case Operand::Kind::kList:
      return build_list(operand.index, frame);
    case Operand::Kind::kState:
      return frame.state[operand.index];
  }
  TORCH_INTERNAL_ASSERT(false, "unknown operand");
}

IValue Program::build_list(uint32_t index, Frame& frame) const {
  const auto& [element_type, elements] = lists_[index];
  c10::impl::GenericList list(element_type);
  list.reserve(elements.size());
  for (const auto& element : elements) {
    list.push_back(read(element, frame));
  }
  return list;
}

IValue Program::fold(uint32_t list) const {
  const Instruction* current = nullptr;
  Frame frame{{}, {}, {}, {}, current};
  return build_list(list, frame);
}

void Program::check_writes(const Instruction& instruction, Frame& frame) const {
  if (!frame.shared) {
    frame.shared.emplace();
    weights_.add_memory(*frame.shared);
    for (const auto& input : frame.inputs) {
      if (input.isTensor()) {
        frame.shared->add(input.toTensor());
      }
    }
  }
  const bool reshapes = instruction.op->hasTag(at::Tag::inplace_view);
  const auto check = [&](const IValue& value) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !reshapes || !value.isTensor() ||
            std::none_of(
                frame.state.begin(),
                frame.state.end(),
                [&](const IValue& held) {
                  return held.toTensor().is_same(value.toTensor());
                }),
        "it changes the shape or the memory of a buffer, not its values; keep "
        "both as they are, and write values (copy_, index_copy_)");
    TORCH_CHECK_NOT_IMPLEMENTED(
        !value.isTensor() || !frame.shared->overlaps(value.toTensor()),
        "it writes to memory that it shares with an input or a weight, a data "
        "race between threads; write the model so that it returns the new "
        "value (x = x + 1, not x += 1)");
  };
  for (const auto argument : instruction.unsafe_writes) {
    const auto& value = frame.stack[argument];
    if (value.isList()) {
      for (const auto& element : value.toListRef()) {
        check(element);
      }
    } else {
      check(value);
    }
  }
}

void Program::step(const Instruction& instruction, Frame& frame) const {
  auto& stack = frame.stack;
  stack.clear();
  for (const auto& operand : instruction.operands) {
    stack.push_back(read(operand, frame));
  }
  if (instruction.builtin != nullptr) {
    auto result = instruction.builtin(Args(stack));
    stack.clear();
    stack.push_back(std::move(result));
  } else {
    if (!instruction.unsafe_writes.empty()) {
      check_writes(instruction, frame);
    }
    instruction.op->callBoxed(stack);
  }
  const auto& outputs = instruction.outputs;
  if (instruction.unpack) {
    const auto list = std::move(stack.back()).toList();
    TORCH_CHECK(
        list.size() >= outputs.size(),
        "returned ",
        list.size(),
        " values, not the ",
        outputs.size(),
        " it did when exported");
    stack.assign(list.begin(), list.begin() + outputs.size());
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i] >= 0) {
      frame.slots[outputs[i]] = std::move(stack[i]);
    }
  }
}

void Program::execute(const Code& code, Frame& frame) const {
  for (const auto& instruction : code) {
    if (!instruction.mode) {
      frame.current = &instruction;
      step(instruction, frame);
    } else if (const auto* grad = std::get_if<GradMode>(&*instruction.mode)) {
      const at::AutoGradMode guard(grad->enabled);
      execute(instruction.body, frame);
    } else {
      const AutocastGuard guard(std::get<Autocast>(*instruction.mode));
      execute(instruction.body, frame);
    }
  }
}

std::vector<IValue> Program::run(
    c10::ArrayRef<IValue> inputs,
    c10::ArrayRef<IValue> state,
    const Instruction*& current) const {
  TORCH_CHECK_VALUE(inputs.size() >= num_inputs_, "too few inputs");
  TORCH_CHECK_VALUE(state.size() >= num_state_, "too little state");
  const c10::InferenceMode inference_mode;
  weights_.check();
  Frame frame{inputs, state, std::vector<IValue>(num_slots_), {}, current};
  frame.stack.reserve(16); // batch_norm takes nine, attention seven
  execute(code_, frame);
  std::vector<IValue> results;
  results.reserve(outputs_.size());
  for (const auto& output : outputs_) {
    results.push_back(read(output, frame));
  }
  settle(results, frame);
  return results;
}

} // namespace torchgil::forward
