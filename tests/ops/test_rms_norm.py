"""rms_norm: equal to torch.nn.functional.rms_norm, in every dtype, shape and order of derivative."""

import pytest
import torch
import torch.nn.functional as F

import torchgil

from ..conftest import run_in_child

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(4,), (3, 8), (2, 3, 17), (5, 1), (64, 512), (3, 1000)]


def reference(x, weight, eps):
    return F.rms_norm(x, [x.shape[-1]], weight, eps)


@pytest.mark.parametrize("policy", ["released", "held", "adaptive"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward_are_torchs(shape, dtype, policy):
    torch.manual_seed(2)
    x, weight = torch.randn(shape).to(dtype), torch.rand(shape[-1]).to(dtype)
    grad = torch.randn(shape).to(dtype)
    results = []
    for fn in (getattr(torchgil, policy).rms_norm, reference):
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = fn(a, w, 1e-5)
        results.append([y.detach(), *torch.autograd.grad(y, (a, w), grad)])
    # The reference's own weight gradient is rounded to 8 or 11 bits on the way to its sum.
    loose = {"rtol": 3e-2, "atol": 3e-2} if dtype in (torch.bfloat16, torch.float16) else {}
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, **loose)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    x, weight = torch.randn(16, 384).to(dtype), torch.rand(384).to(dtype)
    exact = reference(x.double(), weight.double(), 1e-6)
    ours = torchgil.released.rms_norm(x, weight)
    # Half a unit in the last place of the result, and float32's own error.
    assert ((ours.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.501 + 1e-7).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")  # gradcheck's own use,
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")  # in forward mode
def test_gradcheck_of_every_order():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(torchgil.released.rms_norm, (x, weight), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(torchgil.released.rms_norm, (x, weight))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(8, 6).t(),
        lambda: torch.randn(6, 16)[:, ::2],
        lambda: torch.randn(12, 8)[::2],
        lambda: torch.randn(1, 8).expand(6, 8),
        lambda: torch.randn(2, 8, 3).permute(2, 0, 1),
    ],
)
def test_any_strides(make):
    x = make()
    weight = torch.rand(x.shape[-1] * 2)[::2]
    y = torchgil.released.rms_norm(x, weight)
    assert y.is_contiguous()
    torch.testing.assert_close(y, reference(x, weight, 1e-6))
    grad = torch.randn(y.shape[::-1]).permute(*reversed(range(y.dim())))
    for ours, theirs in zip(
        torch.ops.torchgil.rms_norm_backward(grad, x, weight, 1e-6),
        torch.ops.torchgil.rms_norm_backward(grad.contiguous(), x.contiguous(), weight.contiguous(), 1e-6),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,), (2, 0, 4)], ids=str)
def test_empty(shape):
    x, weight = torch.ones(shape, requires_grad=True), torch.ones(shape[-1], requires_grad=True)
    y = torchgil.released.rms_norm(x, weight)
    assert y.shape == shape
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(shape[-1]))


@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]
)
@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight:UserWarning"
)  # torch's, of its own
def test_mixed_dtypes_give_xs_dtype(x_dtype, weight_dtype):
    x, weight = (
        torch.randn(4, 8).to(x_dtype).requires_grad_(),
        torch.rand(8).to(weight_dtype).requires_grad_(),
    )
    y = torchgil.released.rms_norm(x, weight)
    assert y.dtype == x_dtype
    torch.testing.assert_close(y, reference(x, weight, 1e-6))
    y.float().sum().backward()
    assert (x.grad.dtype, weight.grad.dtype) == (x_dtype, weight_dtype)


def test_special_values():
    assert torch.equal(torchgil.released.rms_norm(torch.zeros(2, 4), torch.ones(4)), torch.zeros(2, 4))
    y = torchgil.released.rms_norm(torch.tensor([[1.0, float("nan")], [3.0, 4.0]]), torch.ones(2))
    assert y[0].isnan().all()
    assert not y[1].isnan().any()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_for_one_number_of_threads(threads):
    x, weight, grad = torch.randn(512, 512), torch.rand(512), torch.randn(512, 512)
    with torchgil.intra_op_threads(threads):
        first = torch.ops.torchgil.rms_norm_backward(grad, x, weight, 1e-6)
        for _ in range(5):
            again = torch.ops.torchgil.rms_norm_backward(grad, x, weight, 1e-6)
            assert all(map(torch.equal, first, again))


def test_the_backward_in_a_thread_whose_number_is_not_the_default():
    """Its first parallel region takes the default: what was sized before that was written past its end."""
    run_in_child(
        """
        import torch, torchgil, threading
        x, grad = torch.randn(512, 4096), torch.randn(512, 4096)
        torch.set_num_threads(1)
        wanted = torch.ops.torchgil.rms_norm_backward(grad, x, x[0], 1e-6)[1]
        def call(me):
            torch.set_num_threads(1)
            assert torch.get_num_threads() == 1  # torch's own first look at the default is behind it
            others = threading.Thread(target=torch.set_num_threads, args=(8,))
            others.start()
            others.join()
            again = torch.ops.torchgil.rms_norm_backward(grad, x, x[0], 1e-6)[1]
            torch.testing.assert_close(again, wanted, atol=0.01, rtol=0)
            me.append(True)
        passed = []
        for _ in range(5):
            thread = threading.Thread(target=call, args=(passed,))
            thread.start()
            thread.join()
        assert len(passed) == 5
        """
    )


@pytest.mark.parametrize("policy", ["released", "held", "adaptive"])
def test_mistakes(policy):
    rms_norm = getattr(torchgil, policy).rms_norm
    x, weight = torch.ones(2, 4), torch.ones(4)
    for arguments, error, match in [
        ((x.long(), weight), TypeError, r"x and weight must be of a floating dtype, got Long and Float"),
        ((x, weight.to(torch.complex64)), TypeError, r"floating dtype, got Float and ComplexFloat"),
        ((torch.ones(()), weight), ValueError, r"x must have at least one dimension"),
        ((x, torch.ones(3)), ValueError, r"weight must have shape \[4\], x's last dimension, got \[3\]"),
        ((x, torch.ones(2, 4)), ValueError, r"weight must have shape \[4\].*got \[2, 4\]"),
        ((x, torch.ones(4, device="meta")), ValueError, r"must be on one device, got cpu and meta"),
        ((x, weight, -1.0), ValueError, r"eps must be finite and not negative, got -1"),
        ((x, weight, float("nan")), ValueError, r"eps must be finite"),
        ((x, [1.0]), TypeError, r"incompatible function arguments"),
    ]:
        with pytest.raises(error, match=match):
            rms_norm(*arguments)
    with pytest.raises(ValueError, match=r"grad must have x's shape \[2, 4\], got \[2, 3\]"):
        torch.ops.torchgil.rms_norm_backward(torch.ones(2, 3), x, weight, 1e-6)


def test_composed_equals_the_kernel():
    """What other devices run, on this one: the meta of forward-mode derivatives and functorch."""
    x, weight = torch.randn(6, 32), torch.rand(32)
    composed = torch.vmap(torchgil.released.rms_norm, in_dims=(0, None))(x, weight)
    torch.testing.assert_close(composed, torchgil.released.rms_norm(x, weight))
