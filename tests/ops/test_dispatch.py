"""The ops as citizens of torch: dispatcher, modes, subclasses, tracing, functorch."""

import pytest
import torch
import torch.utils._pytree as pytree
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchgil
from torchgil.ops import witness

from .conftest import OPS, POLICIES, small_arguments

ops = torch.ops.torchgil
TENSOR_OPS = ["add", "matmul", "rms_norm"]
# torch.compile warns of its own making; none of these is about our code.
quiet = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@quiet
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("op", ["add", "matmul", "rms_norm", "rms_norm_backward"])
def test_opcheck(op, gradients):
    arguments = (
        (torch.randn(3, 4), *small_arguments("rms_norm"), 1e-6)
        if op == "rms_norm_backward"
        else small_arguments(op)
    )
    arguments = pytree.tree_map_only(torch.Tensor, lambda t: t.requires_grad_(gradients), arguments)
    torch.library.opcheck(getattr(ops, op).default, arguments)


@quiet
@pytest.mark.parametrize("op", ["nms", "sleep"])
def test_opcheck_without_gradients(op):
    torch.library.opcheck(getattr(ops, op).default, small_arguments(op))


def test_opcheck_of_spin():
    # Its result is how much work it did, another number each time: no comparison of two runs.
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.spin.default, (1e-4,), test_utils=utilities)


@quiet
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("op", TENSOR_OPS)
def test_compile_in_one_graph(op, policy):
    call = getattr(POLICIES[policy], op)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *arguments: call(*arguments) + 1, fullgraph=True, backend="aot_eager")
    mine = [t.requires_grad_() for t in small_arguments(op)]
    theirs = [t.requires_grad_() for t in small_arguments(op)]
    y, expected = compiled(*mine), call(*theirs) + 1
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    for ours, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours.grad, reference.grad)


@quiet
def test_compile_with_inductor():
    def model(a, b, w):
        return torchgil.released.rms_norm(
            torchgil.held.matmul(torchgil.adaptive.add(a, a, alpha=2), b), w
        ).relu()

    a, b, w = torch.randn(3, 4), torch.randn(4, 5), torch.rand(5)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(a, b, w), model(a, b, w))


@quiet
@pytest.mark.parametrize("policy", POLICIES)
def test_compile_nms_whose_size_depends_on_data(policy):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *arguments: POLICIES[policy].nms(*arguments) * 2, fullgraph=True, backend="aot_eager"
    )
    arguments = small_arguments("nms")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(compiled(*arguments), ops.nms(*arguments) * 2)


@quiet
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("op", [*TENSOR_OPS, "nms"])
def test_export_keeps_the_op(op, policy):
    call = getattr(POLICIES[policy], op)

    class Model(torch.nn.Module):
        def forward(self, *arguments):
            return call(*arguments)

    arguments = small_arguments(op)
    program = torch.export.export(Model(), arguments)
    assert getattr(ops, op).default in {node.target for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(*arguments), call(*arguments))


@quiet
def test_export_with_a_dynamic_batch():
    class Model(torch.nn.Module):
        def forward(self, x, w):
            return torchgil.released.rms_norm(torchgil.released.matmul(x, torch.eye(4)), w)

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        Model(), (torch.randn(3, 4), torch.rand(4)), dynamic_shapes={"x": {0: batch}, "w": None}
    )
    x, w = torch.randn(7, 4), torch.rand(4)
    torch.testing.assert_close(program.module()(x, w), Model()(x, w))


def test_the_fake_result_has_the_real_ones_properties():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        for op in TENSOR_OPS:
            fake = [mode.from_tensor(t) for t in small_arguments(op)]
            result, real = getattr(torchgil.released, op)(*fake), getattr(ops, op)
            with torch.utils._python_dispatch._disable_current_modes():
                real = real(*small_arguments(op))
            assert (result.shape, result.dtype, result.stride()) == (real.shape, real.dtype, real.stride())


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_dispatch_mode_sees_the_op(op, policy, call, gradients):
    arguments = small_arguments(op)
    if op in TENSOR_OPS:
        arguments = [t.requires_grad_(gradients) for t in arguments]
    with Recorder() as recorder:
        call(*arguments)
    assert f"torchgil.{op}.default" in recorder.seen


@pytest.mark.parametrize("policy", POLICIES)
def test_a_dispatch_mode_sees_the_backward(policy):
    y = POLICIES[policy].rms_norm(*[t.requires_grad_() for t in small_arguments("rms_norm")])
    with Recorder() as recorder:
        y.sum().backward()
    assert "torchgil.rms_norm_backward.default" in recorder.seen


def test_the_profiler_sees_the_op(op, policy, call):
    with torch.autograd.profiler.profile() as profile:
        call(*small_arguments(op))
    assert f"torchgil::{op}" in {event.name for event in profile.function_events}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_function_mode_sees_the_op(policy):
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Mode():
        y = POLICIES[policy].add(x, x, alpha=3)
    assert torch.equal(y, 4 * x)
    assert "torchgil.add" in seen[0]


class Celsius(torch.Tensor):
    """A subclass by __torch_function__, torch.Tensor's own."""


@pytest.mark.parametrize("policy", POLICIES)
def test_a_subclass_keeps_its_class(policy):
    module = POLICIES[policy]
    x, w = torch.randn(3, 3).as_subclass(Celsius), torch.rand(3)
    assert type(module.add(x, x, alpha=2)) is Celsius
    assert type(module.matmul(torch.ones(3, 3), x)) is Celsius
    assert type(module.rms_norm(x, w, 1e-3)) is Celsius
    torch.testing.assert_close(
        module.add(x, x, alpha=2).as_subclass(torch.Tensor), 3 * x.as_subclass(torch.Tensor)
    )


class Wrapper(torch.Tensor):
    """A subclass by __torch_dispatch__, which torch calls below autograd."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return pytree.tree_map_only(torch.Tensor, cls, func(*args, **kwargs))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_wrapper_subclass_gets_the_op(policy):
    x = torch.randn(3, 3)
    y = POLICIES[policy].matmul(Wrapper(x), x)
    assert type(y) is Wrapper
    torch.testing.assert_close(y.inner, x @ x)


def test_a_parameter_is_a_plain_tensor_to_the_ops():
    weight = torch.nn.Parameter(torch.rand(4))
    with witness() as records:
        torchgil.held.rms_norm(torch.ones(4), weight).sum().backward()
    assert records[0].held_gil
    assert weight.grad is not None


@pytest.mark.parametrize("policy", POLICIES)
def test_inference_mode_and_no_grad(policy):
    x = torch.randn(3, 3, requires_grad=True)
    with torch.inference_mode():
        assert POLICIES[policy].matmul(x, x).is_inference()
    with torch.no_grad():
        assert not POLICIES[policy].add(x, x).requires_grad


@quiet
@pytest.mark.parametrize("policy", POLICIES)
def test_functorch_transforms(policy):
    module = POLICIES[policy]
    x, w = torch.randn(5, 4), torch.rand(4)
    torch.testing.assert_close(torch.vmap(module.add)(x, x), x + x)
    torch.testing.assert_close(torch.vmap(module.matmul, in_dims=(0, None))(x, w), x @ w)
    grad = torch.func.grad(lambda v: module.rms_norm(v, w).sum())(x)
    leaf = x.clone().requires_grad_()
    module.rms_norm(leaf, w).sum().backward()
    torch.testing.assert_close(grad, leaf.grad)
    for fn in (lambda v: module.add(v, v), lambda v: module.matmul(v, w), lambda v: module.rms_norm(v, w)):
        _, tangent = torch.func.jvp(fn, (x,), (torch.ones_like(x),))
        numeric = (fn((x + 1e-3).double().float()) - fn(x - 1e-3)) / 2e-3
        torch.testing.assert_close(tangent, numeric, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("policy", POLICIES)
def test_autocast(policy):
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = POLICIES[policy].matmul(a, b)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert a.grad.dtype == torch.float32


def test_signatures_and_docstrings_are_for_people():
    import inspect

    assert str(inspect.signature(torchgil.released.add)) == "(a, b, *, alpha=1)"
    assert str(inspect.signature(torchgil.held.rms_norm)) == "(x, weight, eps=1e-06)"
    for policy in (torchgil.released, torchgil.held, torchgil.adaptive):
        for name in [*OPS, "wait"]:
            documentation = inspect.getdoc(getattr(policy, name))
            assert {"Args:", "Raises:"} <= set(documentation.split("\n"))
