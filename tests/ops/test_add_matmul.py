"""add and matmul: what ATen says, on every shape and dtype it takes."""

import pytest
import torch

import torchgil

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.bool,
]


def make(shape, dtype):
    torch.manual_seed(1)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(0, 2, shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (4,)), ((0, 4), (4,)), ((), (2, 3)), ((), ()), ((5, 1, 3), (1, 2, 3))]
)
@pytest.mark.parametrize("policy", ["released", "held", "adaptive"])
def test_add_is_torch_add(policy, a, b, dtype):
    x, y = make(a, dtype), make(b, dtype)
    alpha = True if dtype == torch.bool else 2
    torch.testing.assert_close(
        getattr(torchgil, policy).add(x, y, alpha=alpha), torch.add(x, y, alpha=alpha), rtol=0, atol=0
    )


def test_add_promotes_as_torch_does():
    for x, y in [
        (make((2,), torch.int64), make((2,), torch.float32)),
        (make((2,), torch.float32), make((2,), torch.complex64)),
        (make((), torch.float64), make((2,), torch.float32)),
    ]:
        assert torchgil.released.add(x, y).dtype == torch.add(x, y).dtype


@pytest.mark.parametrize("alpha", [2, 0.5, 1j])
def test_alpha_is_any_python_number(alpha):
    x, y = make((3,), torch.complex64), make((3,), torch.complex64)
    assert torch.equal(torchgil.released.add(x, y, alpha=alpha), torch.add(x, y, alpha=alpha))


def test_alpha_is_a_number_of_numpy_too():
    numpy = pytest.importorskip("numpy")
    x, y = make((3,), torch.float32), make((3,), torch.float32)
    assert torch.equal(torchgil.released.add(x, y, alpha=numpy.float32(0.5)), x + 0.5 * y)
    assert torch.equal(torchgil.released.add(x, y, alpha=numpy.int64(3)), x + 3 * y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_alpha_is_a_tensor_without_dimensions_too(dtype):
    x, alpha = torch.randn(3), torch.tensor(2.5).to(dtype)
    expected = torch.add(x, x, alpha=alpha)
    for policy in (torchgil.released, torchgil.held, torchgil.adaptive):
        assert torch.equal(policy.add(x, x, alpha=alpha), expected)


def test_alpha_is_no_tensor_that_torch_add_refuses():
    x = torch.ones(2)
    for alpha in (torch.ones(1), torch.ones(0), torch.tensor(2.5, requires_grad=True)):
        for add in (torch.add, torchgil.released.add):
            with pytest.raises(TypeError):
                add(x, x, alpha=alpha)
    for alpha in (torch.tensor(True), torch.tensor(1j), torch.tensor(2.0, device="meta")):
        for add in (torch.add, torchgil.released.add):
            with pytest.raises(RuntimeError, match=r"alpha|meta tensors"):
                add(x, x, alpha=alpha)


def test_alpha_that_is_no_number_or_too_large():
    x = torch.ones(2)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        torchgil.released.add(x, x, alpha="2")
    with pytest.raises(OverflowError):
        torchgil.released.add(x, x, alpha=2**80)
    with pytest.raises(RuntimeError, match="integral"):
        torchgil.released.add(torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), alpha=0.5)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4,)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (4,)),
        ((3, 4), (2, 4, 5)),
        ((4,), (2, 4, 5)),
        ((2, 1, 3, 4), (6, 4, 5)),
        ((0, 4), (4, 5)),
        ((3, 0), (0, 5)),
    ],
)
class TestMatmulShapes:
    def test_forward(self, a, b):
        x, y = make(a, torch.float64), make(b, torch.float64)
        torch.testing.assert_close(torchgil.released.matmul(x, y), torch.matmul(x, y), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
    def test_gradients(self, a, b, dtype):
        x, y = make(a, dtype).requires_grad_(), make(b, dtype).requires_grad_()
        assert torch.autograd.gradcheck(torchgil.released.matmul, (x, y))
        assert torch.autograd.gradgradcheck(torchgil.held.matmul, (x, y))


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_matmul_is_torch_matmul(dtype):
    x, y = make((3, 4), dtype), make((4, 5), dtype)
    torch.testing.assert_close(torchgil.adaptive.matmul(x, y), torch.matmul(x, y), rtol=0, atol=0)


@pytest.mark.parametrize(
    "view", [lambda t: t.t(), lambda t: t[::2], lambda t: t[:, ::2], lambda t: t.expand(4, 4)]
)
def test_any_strides(view):
    base = torch.randn(4, 4)[:1] if view(torch.ones(1, 4)).shape == (4, 4) else torch.randn(4, 4)
    x = view(base)
    assert torch.equal(torchgil.released.add(x, x), x + x)
    y = torch.randn(x.shape[1], 3)
    torch.testing.assert_close(torchgil.released.matmul(x, y), x @ y)


@pytest.mark.parametrize(
    "dtypes", [(torch.float64,) * 2, (torch.complex128,) * 2, (torch.float64, torch.complex128)], ids=str
)
def test_add_gradients(dtypes):
    x, y = make((3, 1), dtypes[0]).requires_grad_(), make((4,), dtypes[1]).requires_grad_()
    for alpha in (1, 2.5):
        assert torch.autograd.gradcheck(lambda a, b: torchgil.released.add(a, b, alpha=alpha), (x, y))  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda a, b: torchgil.held.add(a, b, alpha=alpha), (x, y))  # noqa: B023


def test_only_the_gradients_that_are_wanted():
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    torchgil.released.matmul(x, y).sum().backward()
    torchgil.released.add(x, torch.ones(3, 4)).sum().backward()
    assert x.grad is not None
    assert y.grad is None


@pytest.mark.parametrize("policy", ["released", "held", "adaptive", "torch.ops"])
def test_mistakes_are_pythons_kind_of_error(policy):
    from .conftest import POLICIES

    module = POLICIES[policy]
    with pytest.raises(RuntimeError, match="size of tensor"):
        module.add(torch.ones(2), torch.ones(3))
    with pytest.raises(RuntimeError, match=r"shapes|size mismatch"):
        module.matmul(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="dtype"):
        module.matmul(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="device"):
        module.add(torch.ones(2), torch.ones(2, device="meta"))
    with pytest.raises((TypeError, RuntimeError), match=r"incompatible|Expected"):
        module.add(torch.ones(2), "no tensor")


def test_sparse_tensors_go_where_aten_takes_them():
    x = torch.eye(3).to_sparse()
    assert torch.equal(torchgil.released.add(x, x).to_dense(), 2 * torch.eye(3))
    assert torch.equal(torchgil.adaptive.matmul(x, torch.ones(3, 2)), torch.ones(3, 2))
