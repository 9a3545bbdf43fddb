"""Example arguments that share memory, with each other or with the model, stand for different arguments."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import torchgil
from torchgil.forward._examples import separate


class Weighted(nn.Module):
    """Each argument, and each tensor of its own, has a factor that no other has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("buffer", torch.full((4,), 3.0))
        self.constant = torch.full((4,), 5.0)

    def forward(self, a: Tensor, b: Any, *, c: Tensor) -> Tensor:
        other = b["b"][0] if isinstance(b, dict) else b
        own = 1000 * self.weight + 10_000 * self.buffer + 100_000 * self.constant
        return a + 10 * other + 100 * c + own


BASE = torch.arange(12.0)
OWN = {"a": torch.full((4,), 1.0), "b": torch.full((4,), 2.0), "c": torch.full((4,), 3.0)}

SHARED: dict[str, Callable[[Weighted], tuple[Tensor, Tensor, Tensor]]] = {
    "one tensor": lambda m: (BASE[:4],) * 3,
    "views that overlap": lambda m: (BASE[:4], BASE[2:6], BASE[3:7]),
    "views that do not": lambda m: (BASE[:4], BASE[4:8], BASE[8:]),
    "an expanded tensor": lambda m: (BASE[:1].expand(4), BASE[:1].expand(4), BASE[:1].expand(4)),
    "a strided view": lambda m: (BASE[::3], BASE[1::3], BASE[2::3]),
    "a parameter": lambda m: (m.weight, m.weight, BASE[:4]),  # type: ignore[dict-item]
    "a view of a parameter": lambda m: (m.weight.detach(), m.weight.view(4), m.weight[:]),
    "a buffer": lambda m: (m.buffer, m.buffer, m.buffer),  # type: ignore[dict-item]
    "a constant": lambda m: (m.constant, m.constant.view(4), m.constant),
    "what numpy holds": lambda m: (torch.from_numpy(BASE.numpy()[:4]), BASE[:4], BASE[1:5]),
}


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_examples_are_different_arguments(name: str, nested: bool) -> None:
    model = Weighted()
    a, b, c = SHARED[name](model)

    def wrap(x: Tensor) -> Any:
        return {"b": [x]} if nested else x

    forward = torchgil.nogil(model, (a, wrap(b)), {"c": c})
    with torch.no_grad():
        want = model(OWN["a"], wrap(OWN["b"]), c=OWN["c"])
    assert torch.equal(forward(OWN["a"], wrap(OWN["b"]), c=OWN["c"]), want)


def test_a_copy_is_as_its_original() -> None:
    base = torch.randn(2, 3, 4, 4)
    originals = [
        base.to(memory_format=torch.channels_last),
        base[:, 1:, ::2],
        base[0, 0, 0].expand(5, 4),
        base.mT,
        base.double().requires_grad_(),
        nn.Parameter(base, requires_grad=False),
        base.to("meta"),
        base[:0],
        torch.view_as_complex(base[..., :2].contiguous()),
        base[0, 0].to_sparse(),
        torch.tensor(3),
    ]
    for original in originals:
        first, second = separate((original, original), [])
        assert first is original
        assert second is not original
        assert type(second) is type(original)
        for name in ("dtype", "device", "layout", "shape", "requires_grad", "is_quantized"):
            assert getattr(second, name) == getattr(original, name)
        if original.layout is torch.strided:
            assert second.stride() == original.stride()
            assert second.untyped_storage()._cdata != original.untyped_storage()._cdata
        if original.device.type != "meta":
            assert torch.equal(second.detach().to_dense(), original.detach().to_dense())


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch deprecates the one, and calls the other a beta
def test_a_copy_of_a_quantised_or_compressed_tensor_is_as_its_original() -> None:
    base = torch.randn(4, 4)
    for original in (torch.quantize_per_tensor(base, 0.1, 3, torch.qint8), base.to_sparse_csr()):
        first, second = separate((original, original), [])
        assert first is original
        assert second is not original
        assert (second.layout, second.dtype) == (original.layout, original.dtype)
        assert str(second) == str(original)


def test_what_shares_nothing_is_passed_as_it_is() -> None:
    given = ({"a": torch.ones(2)}, [torch.ones(2), 3, "x", None])
    assert separate(given, [torch.ones(2)]) is given


def test_dimensions_marked_on_a_tensor_or_collected_by_it_stay_so() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, 2 * y])

    model, x = Two(), torch.ones(3)
    shapes = torch.export.ShapesCollection()
    shapes[x] = {0: Dim.DYNAMIC}
    forward = torchgil.nogil(model, (x, x), dynamic_shapes=shapes)
    assert forward(torch.ones(5), torch.ones(4)).shape == (9,)
    torch._dynamo.mark_dynamic(x, 0)  # type: ignore[no-untyped-call]
    first, second = separate((x, x), [])
    assert second._dynamo_dynamic_indices == first._dynamo_dynamic_indices == {0}


def saved(program: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.9, of its own buffer
        return torch.export.load(buffer)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, as it lowers
@pytest.mark.parametrize(
    "how", [lambda p: p, saved, lambda p: p.run_decompositions({})], ids=["", "saved", "lowered"]
)
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_a_program_exported_with_one_tensor_for_two_arguments_is_refused(how: Any, strict: bool) -> None:
    model, x = Weighted(), torch.ones(4)
    program = how(torch.export.export(model, (x, {"b": [x]}), {"c": torch.ones(4)}, strict=strict))
    with pytest.raises(ValueError, match="the argument 'a' and the argument 'b_b_0' were one tensor when"):
        torchgil.nogil(program)
    program = how(
        torch.export.export(model, (model.weight, torch.ones(4)), {"c": torch.ones(4)}, strict=strict)
    )
    with pytest.raises(ValueError, match="the argument 'a' and the weight 'weight' were one tensor when"):
        torchgil.nogil(program)


@pytest.mark.parametrize("how", [lambda p: p, saved], ids=["", "saved"])
def test_a_program_whose_arguments_only_look_alike_is_taken(how: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.Parameter(torch.ones(4))
            self.unread = nn.Parameter(torch.ones(4))

        def forward(self, a: Tensor, b: Tensor, unread: Tensor) -> Tensor:
            return a * self.one + b * self.other

    program = how(torch.export.export(Tied(), (torch.ones(4), torch.ones(4), torch.ones(4))))
    assert torchgil.nogil(program)(OWN["a"], OWN["b"], OWN["c"]).tolist() == [3.0] * 4
