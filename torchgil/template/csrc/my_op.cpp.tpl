// csrc/my_op.cpp: softsign(x) = x / (1 + |x|), the whole life of an op.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <torchgil/policies.h>

#include <cmath>

namespace {

using at::Tensor;

// ---- The kernels. They never touch the GIL: torch has released it when they
// are reached through torch.ops, the bindings below decide when through those.

void check(const Tensor& x) {
  TORCH_CHECK_TYPE(
      x.is_floating_point(),
      "softsign: x must be of a floating dtype, got ",
      x.scalar_type());
}

Tensor softsign_cpu(const Tensor& x) {
  check(x);
  const Tensor in = x.contiguous();
  Tensor out = at::empty_like(in);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, in.scalar_type(), "softsign", [&] {
        const scalar_t* from = in.const_data_ptr<scalar_t>();
        scalar_t* to = out.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, in.numel(), 32768, [&](int64_t i, int64_t end) {
          for (; i < end; ++i) {
            to[i] = from[i] / (1 + std::abs(from[i]));
          }
        });
      });
  return out;
}

// What torch.compile and torch.export ask: shape and dtype, without the data.
Tensor softsign_meta(const Tensor& x) {
  check(x);
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}

// ---- The op as a C++ function that goes through torch's dispatcher, so that
// autograd, modes and profilers see the call.

Tensor softsign(const Tensor& x);

// ---- The derivative, 1 / (1 + |x|)^2.

struct Softsign : torch::autograd::Function<Softsign> {
  static Tensor forward(
      torch::autograd::AutogradContext* ctx, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x});
    return softsign(x);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    const Tensor x = ctx->get_saved_variables()[0];
    return {grads[0].div(x.abs().add(1).square())};
  }
};

Tensor softsign_autograd(const Tensor& x) {
  return Softsign::apply(x);
}

// For `adaptive`: roughly how long a call takes. Below some 100 us it keeps the
// GIL, because getting it back beside a busy thread can cost 5 ms.
double softsign_seconds(const Tensor& x) {
  return 1e-9 * static_cast<double>(x.numel());
}

} // namespace

TORCH_LIBRARY(my_op, m) {
  m.def("softsign(Tensor x) -> Tensor", {at::Tag::pt2_compliant_tag});
}

namespace {

// Looked up as the extension is loaded, once the lines above have defined it. A
// static variable in the function would be initialised at the first call, under
// a lock that the child of a fork at that moment finds taken for good.
const auto softsign_op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("my_op::softsign", "")
                             .typed<Tensor(const Tensor&)>();

Tensor softsign(const Tensor& x) {
  return softsign_op.call(x);
}

} // namespace

TORCH_LIBRARY_IMPL(my_op, CPU, m) {
  m.impl("softsign", &softsign_cpu);
}
TORCH_LIBRARY_IMPL(my_op, Meta, m) {
  m.impl("softsign", &softsign_meta);
}
TORCH_LIBRARY_IMPL(my_op, Autograd, m) {
  m.impl("softsign", &softsign_autograd);
}

// ---- Python: my_op.released.softsign, my_op.held.softsign and
// my_op.adaptive.softsign.

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  torchgil::PolicyModules policies(m, "my_op");
  torchgil::def_policies(
      policies,
      "softsign",
      &softsign,
      &softsign_seconds,
      "x / (1 + |x|), elementwise.",
      pybind11::arg("x"));
}
