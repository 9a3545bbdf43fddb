// csrc/torch/forward/program.h: an exported graph as a list of instructions.
#pragma once

#include "builtins.h"
#include "weights.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace torchgil::forward {

/// Where an instruction takes one argument from.
struct Operand {
  enum class Kind : uint8_t {
    kSlot,     // copy of a slot
    kLast,     // the slot's last use: moved out
    kInput,    // the caller's argument
    kConstant, // weights too
    kList,     // built from operands at each call
    kState,    // a tensor of the session, which the program writes to
  };
  /// What a number from a slot becomes where the schema wants something else.
  enum class Coerce : uint8_t { kNone, kInt, kDouble, kTensor };

  Kind kind;
  uint32_t index;
  Coerce coerce = Coerce::kNone;
};

struct GradMode {
  bool enabled;
};

struct Autocast {
  c10::DeviceType device_type;
  c10::ScalarType dtype;
  bool enabled;
};

using Mode = std::variant<GradMode, Autocast>;

/// An operator, a builtin, or a body that runs under a mode: one of the three.
struct Instruction {
  std::optional<c10::OperatorHandle> op;
  Builtin builtin = nullptr;
  std::optional<Mode> mode;
  std::vector<Instruction> body;

  std::vector<Operand> operands;
  std::vector<int32_t> outputs; // slots; -1 where nobody reads the result
  bool unpack = false; // the one result is a list whose elements are stored
  /// Arguments written to that may share memory with an input or a weight.
  std::vector<uint32_t> unsafe_writes;

  std::string name;  // the graph's node, for errors
  std::string where; // the model's source line

  std::string title() const {
    return "node '" + name + "'" + (where.empty() ? "" : " (" + where + ")");
  }
};

/// Runs an exported graph. Built once, with the GIL held; after that it is
/// never changed, so that any number of threads may run it at the same time.
class Program {
 public:
  using Code = std::vector<Instruction>;

  /// Adds a value that every call shares. Returns its index.
  uint32_t add_constant(c10::IValue value);

  /// Adds a weight: a constant that no instruction may write to. What it is
  /// now, but for its values, it must be at each call. Returns its number
  /// among the weights.
  uint32_t add_weight(std::string name, const at::Tensor& weight);

  /// The constant that a weight is; refuses a number that none has.
  uint32_t weight(uint32_t number) const;

  /// Adds a list built from operands at each call. Returns its index.
  uint32_t add_list(c10::TypePtr element_type, std::vector<Operand> elements);

  /// The list as it is now, for one whose elements are all constants.
  c10::IValue fold(uint32_t list) const;

  /// Sets what runs, and which values come out of it, in this order. Refuses
  /// what `run` could not: it looks at no index again.
  void set_code(Code code);
  void set_outputs(std::vector<Operand> outputs);

  /// The last outputs, one for each of these numbers, are no results: they are
  /// the new values of those tensors of the state, which a functional graph
  /// leaves as they are until all has run.
  void set_new_state(std::vector<uint32_t> new_state);

  bool empty() const {
    return code_.empty();
  }

  /// Runs the graph under inference mode.
  /// GIL: not needed. The caller keeps `inputs` until it holds the GIL again:
  /// dropping the last C++ reference to a tensor that Python knows asks for it.
  /// `state` are the tensors that only this call may write to, and read, until
  /// it is over. `current` is the instruction being run, for the error that
  /// comes out.
  std::vector<c10::IValue> run(
      c10::ArrayRef<c10::IValue> inputs,
      c10::ArrayRef<c10::IValue> state,
      const Instruction*& current) const;

 private:
  struct Frame;

  /// Which slots have a value that was not moved out, at one point of the code.
  using Live = std::vector<bool>;

  void count_slots(const Code& code, size_t& results);
  void check(const Code& code, Live& live);
  void check(const Operand& operand, Live& live);
  void execute(const Code& code, Frame& frame) const;
  void step(const Instruction& instruction, Frame& frame) const;
  /// Writes the new state, of which results keep the old values that they are
  /// of; and hands out no tensor of the state itself, whose shape is not the
  /// caller's to change.
  void settle(std::vector<c10::IValue>& results, const Frame& frame) const;
  void check_writes(const Instruction& instruction, Frame& frame) const;
  c10::IValue read(const Operand& operand, Frame& frame) const;
  c10::IValue build_list(uint32_t index, Frame& frame) const;

  struct List {
    c10::TypePtr element_type;
    std::vector<Operand> elements;
  };

  uint32_t num_slots_ = 0;
  size_t num_inputs_ = 0; // that are read
  size_t num_state_ = 0;
  Live live_; // at the end of the code
  std::vector<c10::IValue> constants_;
  std::vector<List> lists_;
  Weights weights_;
  std::vector<uint32_t> weight_constants_; // by the weights' numbers
  Code code_;
  std::vector<Operand> outputs_;
  std::vector<uint32_t> new_state_;
};

} // namespace torchgil::forward
