"""Write an op of your own in C++ that releases the GIL, and see that it does: one kernel, three policies.

    python examples/own_op.py       # compiles for half a minute, once

A call of microseconds is "partly" even where it releases: what lies around the release counts too.
`torchgil new` makes a whole project of it, with autograd, torch.compile and tests.
"""

from __future__ import annotations

import torch
from torch.utils.cpp_extension import load_inline

import torchgil

SOURCE = """
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torchgil/policies.h>

// The kernel: nothing of Python, so that it may run without the GIL.
at::Tensor ema(const at::Tensor& x, double keep) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "ema: x must be float32, got ", x.scalar_type());
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty_like(in);
  const float* from = in.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  double mean = 0;
  for (int64_t i = 0; i < in.numel(); ++i) to[i] = mean = keep * mean + (1 - keep) * from[i];
  return out;
}

// What `adaptive` goes by: roughly how long a call takes. Short ones keep the GIL.
double seconds(const at::Tensor& x, double) { return 2e-9 * x.numel(); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  torchgil::PolicyModules policies(m, "own_op");
  torchgil::def_policies(policies, "ema", &ema, &seconds, "Exponential moving average.",
                         pybind11::arg("x"), pybind11::arg("keep"));
}
"""

if __name__ == "__main__":
    headers = torchgil.get_include()
    op = load_inline("own_op", SOURCE, extra_include_paths=[headers], no_implicit_headers=True)
    for elements in (20_000, 4_000_000):
        x = torch.randn(elements)
        for policy in ("held", "released", "adaptive"):
            ema = getattr(op, policy).ema
            print(f"{elements:9,} {policy:8} {torchgil.audit(ema, x, 0.9).verdict}")
