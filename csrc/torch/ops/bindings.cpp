// csrc/torch/ops/bindings.cpp: the ops in Python, each under three GIL
// policies.
#include <pybind11/stl.h>

#include <torchgil/gil.h>
#include <torchgil/policies.h>
#include "ops/estimate.h"
#include "ops/latch.h"
#include "ops/library.h"
#include "ops/witness.h"

namespace py = pybind11;

namespace torchgil {
namespace {

// The first line of each docstring is the signature, in the form that
// inspect.signature reads.
constexpr const char* kAddDoc = R"(add(a, b, *, alpha=1)
--

a + alpha * b, elementwise: torch.add under this module's GIL policy.

Args:
    a: Tensor of any shape, dtype and device.
    b: Tensor whose shape broadcasts with a's.
    alpha: Number that b is multiplied by.

Returns:
    Tensor of the broadcast shape and the promoted dtype.

Raises:
    RuntimeError: The shapes do not broadcast, or the devices differ.
    TypeError: An argument is no tensor.

Example:
    >>> import torch, torchgil
    >>> torchgil.released.add(torch.ones(2), torch.ones(2), alpha=3)
    tensor([4., 4.])
)";

constexpr const char* kMatmulDoc = R"(matmul(a, b)
--

The matrix product: torch.matmul under this module's GIL policy.

Args:
    a: Tensor of shape [..., m, k] or [k].
    b: Tensor of shape [..., k, n] or [k], of a's dtype.

Returns:
    Tensor of shape [..., m, n], without the dimensions that a vector lacks.

Raises:
    RuntimeError: The shapes do not fit, or the dtypes or devices differ.
    TypeError: An argument is no tensor.

Example:
    >>> import torch, torchgil
    >>> torchgil.released.matmul(torch.ones(1, 3), torch.ones(3, 2))
    tensor([[3., 3.]])
)";

constexpr const char* kRmsNormDoc = R"(rms_norm(x, weight, eps=1e-06)
--

x / sqrt(mean(x ** 2) + eps) * weight, over the last dimension.

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; equal to
torch.nn.functional.rms_norm(x, [n], weight, eps). Sums are float32 for bfloat16
and float16.

Args:
    x: Tensor of shape [..., n], of a floating dtype, any strides.
    weight: Tensor of shape [n], of a floating dtype.
    eps: Finite number, not negative.

Returns:
    Contiguous tensor of x's shape and dtype.

Raises:
    TypeError: A dtype is not floating, or an argument is no tensor.
    ValueError: The shapes or devices do not fit, or eps is out of range.

Example:
    >>> import torch, torchgil
    >>> torchgil.released.rms_norm(torch.tensor([[3.0, -3.0]]), torch.ones(2))
    tensor([[ 1.0000, -1.0000]])
)";

constexpr const char* kNmsDoc = R"(nms(boxes, scores, iou_threshold)
--

Greedy non-maximum suppression: keeps the box of the highest score, drops those
that overlap it by more than the threshold, and so on with the rest.

A box without area overlaps nothing. A NaN score counts as minus infinity; a box
with a NaN coordinate overlaps nothing and is kept.

Args:
    boxes: Tensor of shape [n, 4] on the CPU, of a floating dtype: x1 y1 x2 y2.
    scores: Tensor of shape [n] on the CPU, of a floating dtype.
    iou_threshold: Intersection over union in [0, 1].

Returns:
    int64 tensor of shape [kept]: indices by decreasing score, ties by lower index.

Raises:
    NotImplementedError: The tensors are not on the CPU.
    TypeError: A dtype is not floating, or an argument is no tensor.
    ValueError: A shape does not fit, or iou_threshold is out of range.

Example:
    >>> import torch, torchgil
    >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
    >>> torchgil.released.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5)
    tensor([1, 2])
)";

constexpr const char* kSpinDoc = R"(spin(seconds)
--

Burns one core, without touching memory.

Args:
    seconds: Wall time in [0, 1e9].

Returns:
    How many rounds of arithmetic it did; half as many where two share one core.

Raises:
    ValueError: seconds is negative, NaN or infinite.

Example:
    >>> import torchgil
    >>> torchgil.audit(torchgil.released.spin, 0.1).verdict
    'releases'
    >>> torchgil.audit(torchgil.held.spin, 0.1).verdict
    'holds'
)";

constexpr const char* kSleepDoc = R"(sleep(seconds)
--

Blocks in the operating system.

Args:
    seconds: Wall time in [0, 1e9].

Raises:
    ValueError: seconds is negative, NaN or infinite.

Example:
    >>> import torchgil
    >>> torchgil.audit(torchgil.released.sleep, 0.1).verdict
    'releases'
)";

constexpr const char* kWaitDoc = R"(wait(latch, timeout)
--

Blocks until the latch is open.

Another Python thread can come and open it only where the GIL is released
meanwhile: held.wait can only time out. That is the proof without a stopwatch.

Args:
    latch: The Latch to wait for.
    timeout: Seconds in [0, 1e9].

Returns:
    Whether the latch is open.

Raises:
    ValueError: timeout is negative, NaN or infinite.

Example:
    >>> import threading, torchgil
    >>> latch = torchgil.Latch()
    >>> threading.Timer(0.1, latch.open).start()
    >>> torchgil.held.wait(latch, timeout=0.3)
    False
    >>> torchgil.released.wait(latch, timeout=60)
    True
)";

constexpr const char* kLatchDoc =
    R"(A door that one thread opens and others wait at, with released.wait or
held.wait. It opens once and stays open.

Example:
    >>> import torchgil
    >>> latch = torchgil.Latch()
    >>> latch.is_open, torchgil.released.wait(latch, timeout=0)
    (False, False)
    >>> latch.open()
    >>> torchgil.released.wait(latch, timeout=0)
    True
)";

bool wait(const Latch& latch, double timeout) {
  return latch.wait(timeout);
}

void register_latch(py::module_& m) {
  py::class_<Latch>(m, "Latch", kLatchDoc)
      .def(py::init<>())
      .def(
          "open",
          &Latch::open,
          "open(self)\n--\n\nLets every waiting thread go on, now and later.")
      .def_property_readonly(
          "is_open", &Latch::is_open, "Whether open() was called.")
      .def("__repr__", [](const Latch& latch) {
        return latch.is_open() ? "<torchgil.Latch, open>"
                               : "<torchgil.Latch, closed>";
      });
}

void register_witness(py::module_& m) {
  KernelRegion::install_gil_check(&gil_held);
  m.def("witness_start", &KernelRegion::start, "witness_start()\n--\n\n");
  m.def(
      "witness_stop",
      [] {
        py::list records;
        for (const auto& r : KernelRegion::stop()) {
          records.append(
              py::make_tuple(
                  r.op, r.held_gil, r.begin_ns, r.end_ns, r.thread_id));
        }
        return records;
      },
      "witness_stop()\n--\n\n");
}

} // namespace

// GIL: held throughout (registration); each bound function says its own.
void register_ops(py::module_& m) {
  // Our docstrings carry their signatures; pybind11 would add C++ types to
  // them.
  py::options options;
  options.disable_function_signatures();

  register_latch(m);
  register_witness(m);
  def_adaptive_threshold(m);

  PolicyModules policies(m, "torchgil");
  def_policies(
      policies,
      "add",
      &ops::add,
      &estimate::add,
      kAddDoc,
      py::arg("a"),
      py::arg("b"),
      py::kw_only(),
      py::arg("alpha") = ScalarArgument{1, {}});
  def_policies(
      policies,
      "matmul",
      &ops::matmul,
      &estimate::matmul,
      kMatmulDoc,
      py::arg("a"),
      py::arg("b"));
  def_policies(
      policies,
      "rms_norm",
      &ops::rms_norm,
      &estimate::rms_norm,
      kRmsNormDoc,
      py::arg("x"),
      py::arg("weight"),
      py::arg("eps") = 1e-6);
  def_policies(
      policies,
      "nms",
      &ops::nms,
      &estimate::nms,
      kNmsDoc,
      py::arg("boxes"),
      py::arg("scores"),
      py::arg("iou_threshold"));
  def_policies(
      policies,
      "spin",
      &ops::spin,
      &estimate::seconds,
      kSpinDoc,
      py::arg("seconds"));
  def_policies(
      policies,
      "sleep",
      &ops::sleep,
      &estimate::seconds,
      kSleepDoc,
      py::arg("seconds"));
  def_policies(
      policies,
      "wait",
      &wait,
      [](const Latch&, double timeout) { return timeout; },
      kWaitDoc,
      py::arg("latch"),
      py::arg("timeout"));
}

} // namespace torchgil
