// csrc/torch/forward/bindings.cpp: Python's way into programs and packages.
#include "arguments.h"
#include "constants.h"
#include "graph.h"
#include "package.h"
#include "priority_window.h"
#include "session.h"

#include <torch/csrc/utils/pybind.h>

#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace torchgil::forward {
namespace {

namespace py = pybind11;

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
      .def("set_new_state", &Graph::set_new_state, py::arg("new_state"))
      .def(
          "add_block",
          [](Graph& graph, at::Tensor bytes) {
            return graph.layout.add_block(std::move(bytes));
          },
          py::arg("bytes"))
      .def(
          "add_state",
          &Graph::add_state,
          py::arg("name"),
          py::arg("block"),
          py::arg("offset"),
          py::arg("dtype"),
          py::arg("sizes"),
          py::arg("strides"),
          py::arg("requires_grad"))
      .def(
          "run",
          py::overload_cast<const py::sequence&>(&Graph::run, py::const_))
      .def_readwrite("gil_priority", &Graph::gil_priority);
  py::class_<Session>(m, "Session")
      .def(
          py::init<const Graph&, Session*>(),
          py::arg("graph"),
          py::arg("source") = nullptr,
          py::keep_alive<1, 2>())
      .def("run", &Session::run)
      .def("reset", &Session::reset)
      .def("close", &Session::close)
      .def("tensors", &Session::tensors)
      .def("write", &Session::write, py::arg("values"))
      .def("save", &Session::save)
      .def("load", &Session::load, py::arg("blocks"))
      .def("after_fork", &Session::after_fork);
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
