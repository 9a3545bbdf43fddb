// csrc/torch/ops/autograd.cpp: the derivatives.
//
// Each op is differentiated as one node, so that modes and profilers see
// torchgil::add and not what it is made of. What a node cannot do (forward-mode
// derivatives, functorch transforms) goes through the composed ATen ops, which
// can: right results everywhere, one node where it counts.
#include <ATen/ExpandUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/add.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/real.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/kernels.h"
#include "ops/library.h"

namespace torchgil {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool wants_grad(at::ArrayRef<std::reference_wrapper<const Tensor>> inputs) {
  return at::GradMode::is_enabled() &&
      std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) {
           return t.defined() && t.requires_grad();
         });
}

/// Whether a derivative is being taken that a C++ node cannot give: a functorch
/// transform is at work, or an input carries a forward-mode tangent.
bool needs_composed(at::ArrayRef<std::reference_wrapper<const Tensor>> inputs) {
  return c10::impl::tls_is_dispatch_key_included(
             c10::DispatchKey::FuncTorchDynamicLayerBackMode) ||
      std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) {
           return t.defined() && t._fw_grad(/*level=*/0).defined();
         });
}

/// A real input has a real gradient, whatever the other input made of it.
Tensor as_real_if(bool input_is_complex, Tensor grad) {
  return !input_is_complex && grad.is_complex() ? at::real(grad) : grad;
}

// ---- add: d(a + alpha b) = da + alpha db. The engine sums over what was
// broadcast and casts to each input's dtype.
struct Add : Function<Add> {
  static Tensor forward(
      AutogradContext* ctx,
      c10::DispatchKeySet keys,
      const Tensor& a,
      const Tensor& b,
      const at::Scalar& alpha) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["alpha"] = alpha;
    ctx->saved_data["a_complex"] = a.is_complex();
    ctx->saved_data["b_complex"] = b.is_complex();
    return ops::add_below_autograd(keys, a, b, alpha);
  }

  static variable_list backward(
      AutogradContext* ctx, const variable_list& grads) {
    Tensor grad_a, grad_b;
    if (grads[0].defined() && ctx->needs_input_grad(0)) {
      grad_a = as_real_if(ctx->saved_data["a_complex"].toBool(), grads[0]);
    }
    if (grads[0].defined() && ctx->needs_input_grad(1)) {
      const auto alpha = ctx->saved_data["alpha"].toScalar();
      grad_b = as_real_if(
          ctx->saved_data["b_complex"].toBool(),
          at::mul(grads[0], alpha.conj()));
    }
    return {Tensor(), grad_a, grad_b, Tensor()};
  }
};

Tensor add_autograd(
    c10::DispatchKeySet keys,
    const Tensor& a,
    const Tensor& b,
    const at::Scalar& alpha) {
  if (needs_composed({a, b})) {
    return at::add(a, b, alpha);
  }
  if (wants_grad({a, b})) {
    return Add::apply(keys, a, b, alpha);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::add_below_autograd(keys, a, b, alpha);
}

// ---- matmul: with A [.., m, k], B [.., k, n] and G [.., m, n],
// dA = G B^H and dB = A^H G, summed over what was broadcast.
struct Matmul : Function<Matmul> {
  static Tensor forward(
      AutogradContext* ctx,
      c10::DispatchKeySet keys,
      const Tensor& a,
      const Tensor& b) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({a, b});
    return ops::matmul_below_autograd(keys, a, b);
  }

  static variable_list backward(
      AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &a = saved[0], &b = saved[1];
    if (!grads[0].defined()) {
      return {Tensor(), Tensor(), Tensor()};
    }
    // Vectors become matrices: a row on the left, a column on the right.
    const Tensor left = a.dim() == 1 ? a.unsqueeze(0) : a;
    const Tensor right = b.dim() == 1 ? b.unsqueeze(1) : b;
    Tensor grad = b.dim() == 1 ? grads[0].unsqueeze(-1) : grads[0];
    grad = a.dim() == 1 ? grad.unsqueeze(-2) : grad;
    // Under autocast the product was of a lower precision than its factors.
    grad =
        grad.scalar_type() == a.scalar_type() ? grad : grad.to(a.scalar_type());

    Tensor grad_a, grad_b;
    if (ctx->needs_input_grad(0)) {
      grad_a = at::sum_to(at::matmul(grad, right.mH()), left.sym_sizes());
      grad_a = a.dim() == 1 ? grad_a.squeeze(0) : grad_a;
    }
    if (ctx->needs_input_grad(1)) {
      if (right.dim() == 2 && left.dim() > 2) {
        // One product over all rows, not one for each batch and a sum.
        const Tensor rows = left.reshape_symint({-1, left.sym_size(-1)});
        grad_b =
            at::matmul(rows.mH(), grad.reshape_symint({-1, grad.sym_size(-1)}));
      } else {
        grad_b = at::sum_to(at::matmul(left.mH(), grad), right.sym_sizes());
      }
      grad_b = b.dim() == 1 ? grad_b.squeeze(1) : grad_b;
    }
    return {Tensor(), grad_a, grad_b};
  }
};

Tensor matmul_autograd(
    c10::DispatchKeySet keys, const Tensor& a, const Tensor& b) {
  if (needs_composed({a, b})) {
    return at::matmul(a, b);
  }
  if (wants_grad({a, b})) {
    return Matmul::apply(keys, a, b);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::matmul_below_autograd(keys, a, b);
}

// ---- rms_norm: its backward is an op of its own, which recomputes the one
// number a row it needs. A backward of the backward is composed.
struct RmsNorm : Function<RmsNorm> {
  static Tensor forward(
      AutogradContext* ctx,
      c10::DispatchKeySet keys,
      const Tensor& x,
      const Tensor& weight,
      double eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["eps"] = eps;
    return ops::rms_norm_below_autograd(keys, x, weight, eps);
  }

  static variable_list backward(
      AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) {
      return {Tensor(), Tensor(), Tensor(), Tensor()};
    }
    const auto saved = ctx->get_saved_variables();
    auto [grad_x, grad_weight] = ops::rms_norm_backward(
        grads[0], saved[0], saved[1], ctx->saved_data["eps"].toDouble());
    return {
        Tensor(),
        ctx->needs_input_grad(0) ? grad_x : Tensor(),
        ctx->needs_input_grad(1) ? grad_weight : Tensor(),
        Tensor()};
  }
};

Tensor rms_norm_autograd(
    c10::DispatchKeySet keys,
    const Tensor& x,
    const Tensor& weight,
    double eps) {
  if (needs_composed({x, weight})) {
    return kernels::rms_norm_composed(x, weight, eps);
  }
  if (wants_grad({x, weight})) {
    return RmsNorm::apply(keys, x, weight, eps);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::rms_norm_below_autograd(keys, x, weight, eps);
}

std::tuple<Tensor, Tensor> rms_norm_backward_autograd(
    c10::DispatchKeySet keys,
    const Tensor& grad,
    const Tensor& x,
    const Tensor& weight,
    double eps) {
  if (needs_composed({grad, x, weight}) || wants_grad({grad, x, weight})) {
    return kernels::rms_norm_backward_composed(grad, x, weight, eps);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::rms_norm_backward_below_autograd(keys, grad, x, weight, eps);
}

// ---- nms: indices have no derivative.
Tensor nms_autograd(
    c10::DispatchKeySet keys,
    const Tensor& boxes,
    const Tensor& scores,
    double iou_threshold) {
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::nms_below_autograd(keys, boxes, scores, iou_threshold);
}

} // namespace

TORCH_LIBRARY_IMPL(torchgil, Autograd, m) {
  m.impl("add", &add_autograd);
  m.impl("matmul", &matmul_autograd);
  m.impl("rms_norm", &rms_norm_autograd);
  m.impl("rms_norm_backward", &rms_norm_backward_autograd);
  m.impl("nms", &nms_autograd);
}

// Under vmap the batched tensors go on to ATen's own batching rules.
TORCH_LIBRARY_IMPL(torchgil, FuncTorchBatched, m) {
  m.impl("add", &kernels::add);
  m.impl("matmul", &kernels::matmul);
  m.impl("rms_norm", &kernels::rms_norm_composed);
  m.impl("rms_norm_backward", &kernels::rms_norm_backward_composed);
}

} // namespace torchgil
