"""AOTInductor packages: what calls give and refuse, and that they run at once without the GIL."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.forward import hostile
from tests.forward.comparing import assert_close, assert_same
from tests.forward.conftest import inputs
from torchgil._torch_half import C


@pytest.mark.slow
def test_results_are_the_models(model: nn.Module, forward: Any) -> None:
    for rows in (1, 4, 64):
        x, more = inputs(rows)
        got = forward(x, more, 3, flag=True)
        with torch.inference_mode():
            assert_close(got, model(x, more))
        assert (got["rows"], got["ratio"], got["three"], got["none"]) == (rows, rows / 2, 3, None)
        assert_close(forward(x, more=more), got)
    assert isinstance(forward, torchgil.Forward)
    assert forward.checked
    assert "runners=2, inputs=checked, device='cpu', backend='inductor'" in repr(forward)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        (
            (torch.ones(4, 7), inputs()[1]),
            {},
            ValueError,
            r"'x' was exported as float32\[rows, 8\].*must be 8, not 7",
        ),
        (
            (torch.ones(65, 8), inputs()[1]),
            {},
            ValueError,
            "'x' .*rows must be at least 0 and at most 64, not 65",
        ),
        ((torch.ones(4, 8).long(), inputs()[1]), {}, ValueError, "'x' .*its dtype differs"),
        ((inputs()[0], {"other": torch.ones(8)}), {}, TypeError, "'more' was exported with the keys 'bias'"),
        ((None, inputs()[1]), {}, TypeError, "'x' was exported as a tensor, got NoneType"),
        (
            (inputs()[0], {"bias": [1.0]}),
            {},
            TypeError,
            r"more\['bias'\]' was exported as a tensor, got list",
        ),
        ((*inputs(), 4), {}, ValueError, "'k' was exported as the constant 3, got 4"),
        ((inputs()[0],), {}, TypeError, "missing a required argument: 'more'"),
    ],
)
def test_arguments_are_checked(
    forward: Any, args: Any, kwargs: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        forward(*args, **kwargs)


@pytest.mark.slow
def test_inputs_of_other_strides_give_the_same_results(forward: Any) -> None:
    x, more = inputs()
    transposed = x.mT.contiguous().mT
    assert transposed.stride() != x.stride()
    assert_same(forward(transposed, more), forward(x, more))
    assert_same(forward(x[:, ::1].repeat(1, 2)[:, :8], more), forward(x, more))


def test_inputs_of_no_known_format_are_refused() -> None:
    with pytest.raises(
        NotImplementedError, match=r"strides of its inputs, and those of 'input' are \(1, 4\)"
    ):
        torchgil.nogil(nn.Linear(8, 2), (torch.ones(8, 4).mT,), backend="inductor")


@pytest.mark.slow
def test_a_call_releases_the_gil_once_and_calls_run_at_once(forward: Any) -> None:
    calls = [inputs(rows) for rows in range(1, 9)]
    wanted = [forward(*call) for call in calls]

    def work(thread: int) -> int:
        before = C.forward_releases()
        for _ in range(20):
            assert_same(forward(*calls[thread]), wanted[thread])
        return C.forward_releases() - before

    assert in_threads(work, 8) == [20] * 8  # eight callers, two runners


@pytest.mark.slow
def test_a_kept_package_is_loaded_again_with_its_checks(forward: Any) -> None:
    again = torchgil.load_package(forward.path, runners=1)
    assert_same(again(*inputs(), 3, flag=True), forward(*inputs()))
    with pytest.raises(ValueError, match=r"'x' .*rows must be at least 0 and at most 64"):
        again(torch.ones(65, 8), inputs()[1], 3, flag=True)
    with pytest.raises(TypeError, match=r"cannot be pickled or copied; send the .pt2 file"):
        pickle.dumps(again)


@pytest.mark.slow
def test_a_package_of_another_program_checks_what_it_can(forward: Any, rewritten: Any) -> None:
    other = torchgil.load_package(rewritten(drop="torchgil"))
    assert not other.checked
    assert "inputs=unchecked" in repr(other)
    assert_same(other(*inputs(), 3, flag=True)["y"], forward(*inputs())["y"])
    with pytest.raises(TypeError, match=r"missing 'argument 1'"):
        other(inputs()[0])
    with pytest.raises(TypeError, match=r"with the keys 'bias', got 'more'"):
        other(inputs()[0], {"more": 1}, 3, flag=True)
    with pytest.raises(ValueError, match="argument 0 is on meta, but the package was compiled for cpu"):
        other(torch.ones(4, 8, device="meta"), inputs()[1], 3, flag=True)
    with pytest.raises(
        ValueError, match=r"argument 0 is torch\.sparse_coo, and a package takes dense tensors"
    ):
        other(inputs()[0].to_sparse(), inputs()[1], 3, flag=True)
    for wrong, kind in ((None, "NoneType"), ([1.0] * 8, "list")):
        with pytest.raises(
            TypeError, match=rf"takes 2 tensors, and .* 1 are \(argument 0 is of type {kind}, "
        ):
            other(wrong, inputs()[1], 3, flag=True)
        with pytest.raises(TypeError, match=rf"argument 1\['bias'\] is of type {kind}, argument 2"):
            other(inputs()[0], {"bias": wrong}, 3, flag=True)


@pytest.mark.slow
def test_what_has_no_memory_to_read_is_refused_and_signs_are_done_before(
    forward: Any, rewritten: Any
) -> None:
    code = f"""
        import torch, torchgil
        from torch._subclasses import FakeTensorMode

        x, bias = torch.randn(4, 8), torch.randn(8)
        freed = x.clone()
        freed.untyped_storage().resize_(0)
        wrong = (
            FakeTensorMode().from_tensor(x),
            torch._efficientzerotensor((4, 8)),
            torch.nested.nested_tensor([x[0], x[1], x[2], x[3]]),
            freed,
        )
        for path in {[forward.path, str(rewritten(drop="torchgil"))]}:
            package = torchgil.load_package(path)
            call = lambda x: package(x, {{"bias": bias}}, 3, flag=True)["y"]
            calls = [lambda x=x: call(x) for x in wrong]
            calls += [lambda: torch.vmap(call)(x[None]), lambda: torch.func.functionalize(call)(x)]
            for place, refused in enumerate(calls):
                try:
                    refused()
                except TypeError as error:
                    assert "pass a plain torch.Tensor" in str(error), error
                else:
                    raise AssertionError(f"{{place}} was read")
            assert torch.equal(call(torch._neg_view(x)), call(-x))
    """
    run_in_child(code)


@pytest.mark.slow
def test_compiled_code_runs_the_same_inside_modes_and_transforms(forward: Any) -> None:
    code = f"""
        import torch, torchgil
        from torch._subclasses import FakeTensorMode

        x, bias = torch.randn(4, 8), torch.randn(8)
        package = torchgil.load_package({forward.path!r})
        call = lambda: package(x, {{"bias": bias}}, 3, flag=True)["y"]
        want, zero = call(), torch.zeros(())
        with FakeTensorMode(allow_non_fake_inputs=True):
            got = call()
        assert torch.equal(got, want)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(), want)
        assert torch.equal(torch.vmap(lambda v: call() + v)(zero[None])[0], want)
        assert torch.equal(torch.func.functionalize(lambda v: call() + v)(zero), want)
        assert torch.equal(torch.func.grad(lambda v: call().sum() * v)(zero), want.sum())
    """
    run_in_child(code)


@pytest.mark.slow
def test_a_package_that_says_anything_of_its_arguments_is_refused_or_checks_them(
    forward: Any, rewritten: Any
) -> None:
    said = json.loads(forward.metadata["torchgil"])
    for seed in range(50):
        rng = random.Random(seed)
        try:
            other = torchgil.load_package(rewritten(torchgil=json.dumps(hostile.changed(said, rng))))
        except ValueError as error:
            assert "load_package" in str(error)  # noqa: PT017  (it need not raise)
            continue
        with contextlib.suppress(TypeError, ValueError):
            other(*inputs(), 3, flag=True)
    for sizes in ([-7, 8], ["s78", 8]):
        said["leaves"][0]["sizes"] = sizes
        with pytest.raises(ValueError, match=r"says of its arguments cannot be read: (no dimension 6|'s78')"):
            torchgil.load_package(rewritten(torchgil=json.dumps(said)))


@pytest.mark.slow
def test_of_two_that_compile_at_once_each_packs_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor writes what it compiles where all processes do, under names that do not tell weights apart."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler to compile the package with")
    import torch._inductor.package

    x, one, other = torch.ones(2, 8), nn.Linear(8, 8).eval(), nn.Linear(8, 8).eval()
    pack = torch._inductor.package.package_aoti

    def compile_the_other_and_pack(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        assert_close(torchgil.nogil(other, (x,), backend="inductor")(x), other(x))
        return pack(*args, **kwargs)

    monkeypatch.setattr(torch._inductor.package, "package_aoti", compile_the_other_and_pack)
    assert_close(torchgil.nogil(one, (x,), backend="inductor")(x), one(x))
    assert torch._inductor.package.package_aoti is pack  # it was so


def test_a_string_among_the_results_is_refused() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"x": x + 1, "name": "abc"}

    with pytest.raises(NotImplementedError, match="one output is the constant 'abc'"):
        torchgil.nogil(Named(), (torch.ones(2),), backend="inductor")


def test_an_int_that_changes_is_refused() -> None:
    class Zeros(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            return torch.cat([x, torch.zeros(n)])

    with pytest.raises(NotImplementedError, match="takes no int that changes, and 'n' is one"):
        torchgil.nogil(Zeros(), (torch.ones(2), 4), dynamic_shapes=(None, Dim.DYNAMIC), backend="inductor")


def test_without_a_compiler_the_error_says_what_to_install() -> None:
    code = """
        import torch, torchgil
        torchgil.nogil(torch.nn.Linear(2, 2), (torch.ones(1, 2),), backend="inductor")
    """
    child = run_in_child(code, env={"PATH": "/nonexistent", "CXX": "no-such-compiler"}, check=False)
    assert child.exit_code == 1
    assert "needs a C++ compiler and found none; install g++ or clang++, or name it in CXX" in child.stderr


def test_a_package_has_no_sessions_and_says_so(forward: Any) -> None:
    with pytest.raises(NotImplementedError, match="one copy of its buffers and no sessions"):
        forward.session()
