// csrc/torch/forward/bindings.cpp: Python's way into programs and packages.
#include "arguments.h"
#include "constants.h"
#include "decode.h"
#include "numbers.h"
#include "package.h"
#include "priority_window.h"
#include "program.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace torchgil::forward {
namespace {

namespace py = pybind11;
using c10::IValue;

// How often this thread's calls have released the GIL: the tests' witness.
thread_local int64_t releases = 0;

void add_note(py::error_already_set& error, const std::string& text) {
  if (py::hasattr(error.value(), "add_note")) { // Python 3.11
    error.value().attr("add_note")(text);
  }
}

void set_python_error(const NumberError& error) {
  using Kind = NumberError::Kind;
  PyErr_SetString(
      error.kind() == Kind::kZeroDivision   ? PyExc_ZeroDivisionError
          : error.kind() == Kind::kOverflow ? PyExc_OverflowError
                                            : PyExc_ValueError,
      error.what());
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

/// An exported graph with its checks.
class Graph : public Arguments {
 public:
  uint32_t add_weight(std::string name, const at::Tensor& weight) {
    return program_.add_weight(std::move(name), weight);
  }

  void set_code(const py::list& code) {
    std::string node = "the graph";
    program_.set_code({}); // nothing runs of what is refused
    with_note(
        [&] { program_.set_code(decode_code(code, program_, node)); },
        [&] { return "while nogil read " + node; });
  }

  void set_outputs(const py::list& encoded) {
    std::vector<Operand> outputs;
    for (const auto output : encoded) {
      outputs.push_back(decode_operand(output, nullptr, program_));
    }
    program_.set_outputs(std::move(outputs));
  }

  py::list run(const py::sequence& flat) const;

  bool gil_priority = false;

 private:
  Program program_;
};

// GIL: held on entry, released once while the graph runs.
py::list Graph::run(const py::sequence& flat) const {
  // Kept until the GIL is back: the last C++ reference to a tensor that Python
  // knows must not be dropped without it.
  const auto inputs = check(flat);
  std::vector<IValue> results;
  const Instruction* current = nullptr;
  with_note(
      [&] {
        const PriorityWindow window(gil_priority);
        ++releases;
        results = program_.run(inputs, current);
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

/// An AOTInductor package with what is known of its arguments.
class PackageBinding : public Arguments {
 public:
  // GIL: held on entry, released while the package is loaded.
  PackageBinding(std::string path, std::string model, size_t runners) {
    const ReleaseWindow window;
    package_ = std::make_unique<Package>(path, model, runners);
  }

  // GIL: held on entry, released once while the package runs, or waits for a
  // free model. Packages take tensors only; the rest was fixed at export.
  py::list run(const py::sequence& flat) const {
    std::vector<at::Tensor> inputs;
    for (auto& value : check(flat)) {
      if (value.isTensor()) {
        inputs.push_back(std::move(value).toTensor());
      }
    }
    return run_tensors(inputs);
  }

  // The same where nothing is known of the arguments.
  py::list run_unchecked(const std::vector<at::Tensor>& inputs) const {
    return run_tensors(inputs);
  }

  void set_formats(const py::list& formats) {
    std::vector<c10::MemoryFormat> converted;
    for (const auto format : formats) {
      converted.push_back(
          static_cast<c10::MemoryFormat>(
              to_ivalue(format, c10::MemoryFormatType::get()).toInt()));
    }
    package_->set_formats(std::move(converted));
  }

  std::vector<std::string> call_spec() const {
    return package_->call_spec();
  }

  bool complete() const {
    return package_->complete();
  }

  bool gil_priority = false;

 private:
  py::list run_tensors(const std::vector<at::Tensor>& inputs) const {
    std::vector<at::Tensor> results;
    {
      const PriorityWindow window(gil_priority);
      ++releases;
      results = package_->run(inputs);
    }
    py::list outputs(results.size());
    for (size_t i = 0; i < results.size(); ++i) {
      outputs[i] = py::cast(std::move(results[i]));
    }
    return outputs;
  }

  std::unique_ptr<Package> package_;
};

} // namespace

void register_bindings(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(std::move(thrown));
    } catch (const NumberError& error) { // from a guard
      set_python_error(error);
    }
  });
  py::class_<Arguments>(m, "Arguments")
      .def("add_dimension", &Arguments::add_dimension)
      .def("add_tensor", &Arguments::add_tensor)
      .def("add_int", &Arguments::add_int)
      .def("add_value", &Arguments::add_value)
      .def("add_guards", &Arguments::add_guards);
  py::class_<Graph, Arguments>(m, "Graph")
      .def(py::init<>())
      .def("add_weight", &Graph::add_weight)
      .def("set_code", &Graph::set_code)
      .def("set_outputs", &Graph::set_outputs)
      .def("run", &Graph::run)
      .def_readwrite("gil_priority", &Graph::gil_priority);
  py::class_<PackageBinding, Arguments>(m, "Package")
      .def(py::init<std::string, std::string, size_t>())
      .def("set_formats", &PackageBinding::set_formats)
      .def("run", &PackageBinding::run)
      .def("run_unchecked", &PackageBinding::run_unchecked)
      .def("call_spec", &PackageBinding::call_spec)
      .def("complete", &PackageBinding::complete)
      .def_readwrite("gil_priority", &PackageBinding::gil_priority);
  m.def("forward_releases", [] { return releases; });
}

} // namespace torchgil::forward
