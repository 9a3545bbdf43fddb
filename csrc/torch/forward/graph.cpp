// csrc/torch/forward/graph.cpp: an exported graph with the checks of its
// arguments.
#include "graph.h"

#include "constants.h"
#include "decode.h"
#include "priority_window.h"

#include <torch/csrc/Exceptions.h>

#include <utility>

namespace torchgil::forward {
namespace {

namespace py = pybind11;
using c10::IValue;

void add_note(py::error_already_set& error, const std::string& text) {
  if (py::hasattr(error.value(), "add_note")) { // Python 3.11
    error.value().attr("add_note")(text);
  }
}

/// Runs `body`; what it raises says with `note()` where.
template <class Body, class Note>
void with_note(const Body& body, const Note& note) {
  try {
    body();
  } catch (c10::Error& error) {
    error.add_context(note());
    throw;
  } catch (python_error& error) {
    error.restore();
    py::error_already_set raised;
    add_note(raised, note());
    throw raised;
  } catch (const NumberError& error) {
    set_python_error(error);
    py::error_already_set raised;
    add_note(raised, note());
    throw raised;
  } catch (py::error_already_set& error) {
    add_note(error, note());
    throw;
  }
}

} // namespace

void set_python_error(const NumberError& error) {
  using Kind = NumberError::Kind;
  PyErr_SetString(
      error.kind() == Kind::kZeroDivision   ? PyExc_ZeroDivisionError
          : error.kind() == Kind::kOverflow ? PyExc_OverflowError
                                            : PyExc_ValueError,
      error.what());
}

void Graph::add_state(
    std::string name,
    uint32_t block,
    int64_t offset,
    py::handle dtype,
    std::vector<int64_t> sizes,
    std::vector<int64_t> strides,
    bool requires_grad) {
  layout.add_tensor(
      std::move(name),
      block,
      offset,
      static_cast<at::ScalarType>(
          to_ivalue(dtype, c10::ScalarTypeType::get()).toInt()),
      std::move(sizes),
      std::move(strides),
      requires_grad);
}

void Graph::set_code(const py::list& code) {
  std::string node = "the graph";
  program_.set_code({}); // nothing runs of what is refused
  with_note(
      [&] { program_.set_code(decode_code(code, program_, node)); },
      [&] { return "while nogil read " + node; });
}

void Graph::set_outputs(const py::list& encoded) {
  std::vector<Operand> outputs;
  for (const auto output : encoded) {
    outputs.push_back(decode_operand(output, nullptr, program_));
  }
  program_.set_outputs(std::move(outputs));
}

py::list Graph::run(const py::sequence& flat) const {
  TORCH_CHECK(
      layout.empty(),
      "nogil: this model has state, it writes to ",
      layout.names(),
      ", and every thread would write there; each conversation, stream or user "
      "takes a session, which is called instead: session = fast.session()");
  return run(check(flat), {});
}

// GIL: held on entry, released once while the graph runs. The caller keeps
// `inputs` until the GIL is back: the last C++ reference to a tensor that
// Python knows must not be dropped without it.
py::list Graph::run(const Values& inputs, c10::ArrayRef<IValue> state) const {
  std::vector<IValue> results;
  const Instruction* current = nullptr;
  with_note(
      [&] {
        const PriorityWindow window(gil_priority);
        results = program_.run(inputs, state, current);
        // no Python objects above, but for ops whose kernel is Python
      },
      [&] {
        return current == nullptr ? "in nogil"
                                  : "while nogil ran " + current->title();
      });
  py::list outputs(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    outputs[i] = to_python(results[i]);
  }
  return outputs;
}

} // namespace torchgil::forward
