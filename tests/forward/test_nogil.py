"""The callable that nogil returns: one release per call, shared weights, errors, copies, Python kernels."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.forward.cases import Of
from tests.forward.comparing import assert_same, export, reference
from tests.forward.models import CASES
from torchgil._torch_half import C


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()


def test_what_nogil_returns_has_a_public_type() -> None:
    forward = torchgil.nogil(mlp(), (torch.ones(2, 8),))
    assert isinstance(forward, torchgil.Forward)
    assert forward.backend == "graph"
    assert not isinstance(mlp(), torchgil.Forward)


@pytest.mark.parametrize("name", ["mlp", "decoder", "convolutions", "lstm", "nested inputs"])
def test_a_call_releases_the_gil_exactly_once(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    _, program = export(case)
    forward = torchgil.nogil(program)
    args, kwargs = case.inputs(0)
    before = C.forward_releases()
    for _ in range(10):
        forward(*args, **kwargs)
    assert C.forward_releases() - before == 10


def test_the_trace_sees_one_release_per_call_and_many_for_eager() -> None:
    model, x = mlp(), torch.randn(2, 8)
    forward = torchgil.nogil(model, (x,))
    results: list[Any] = []  # kept: freeing a tensor releases the GIL once more
    forward(x)
    with torchgil.trace() as traced:
        results.extend(forward(x) for _ in range(10))
    (mine,) = [t for t in traced.report().threads if t.name == "MainThread"]
    assert mine.releases == 10
    with torchgil.trace() as eager, torch.inference_mode():
        results.extend(model(x) for _ in range(10))
    (mine,) = [t for t in eager.report().threads if t.name == "MainThread"]
    assert mine.releases >= 30  # the positive control: three operators each


def test_operators_run_without_the_gil() -> None:
    class Spin(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.ops.torchgil.matmul(x, y)

    x = torch.randn(300, 300)
    forward = torchgil.nogil(Spin(), (x, x))
    assert forward.python_ops == ()
    assert_same(forward(x, x), torch.ops.torchgil.matmul(x, x).detach())


def test_weights_are_shared_and_changes_in_place_are_seen() -> None:
    model, x = mlp(), torch.randn(2, 8)
    forward = torchgil.nogil(model, (x,))
    before = forward(x)
    with torch.no_grad():
        model[2].bias.add_(1)
    torch.testing.assert_close(forward(x), before + 1)


def test_results_that_are_inputs_or_weights_are_the_same_objects() -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = x + 1
            return x, self.weight, y, y

    model, x = Through(), torch.ones(2)
    same, weight, y, again = torchgil.nogil(model, (x,))(x)
    assert same is x
    assert weight is model.weight
    assert y is again
    assert y.is_inference()


def test_grad_and_autocast_modes_are_as_they_were_after_a_call_and_after_an_error() -> None:
    class Modes(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return (x @ x.mT)[index]

    x = torch.randn(3, 3)
    forward = torchgil.nogil(Modes(), (x, torch.tensor([0])))
    for index in (0, 5):
        try:
            assert forward(x, torch.tensor([index])).dtype is torch.bfloat16
        except IndexError:
            assert index == 5
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert torch.is_autocast_cache_enabled()
    assert (x @ x).dtype is torch.float32


def test_an_error_names_its_node_and_line_and_gives_the_gil_back() -> None:
    class Index(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return x.relu()[index] + 1

    x = torch.randn(3)
    forward = torchgil.nogil(Index(), (x, torch.tensor([0])))
    with pytest.raises(
        IndexError,
        match=r"out of bounds(.|\n)*while nogil ran node 'index_1' \(.*test_nogil.py:\d+: return x.relu",
    ):
        forward(x, torch.tensor([3]))
    assert_same(forward(x, torch.tensor([2])), x.relu()[torch.tensor([2])] + 1)


def test_runtime_assertions_that_export_emits_are_made() -> None:
    class Some(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found = x.nonzero()
            torch._check(found.shape[0] > 2)
            n = (x > 0).sum().item()
            torch._check(n < 5)
            return torch.zeros(n + 1) + found.sum()

    forward = torchgil.nogil(Some(), (torch.ones(4),))
    assert forward(torch.ones(4)).tolist() == [6.0] * 5
    with pytest.raises(RuntimeError, match=r"Runtime assertion failed.*(.|\n)*node '_assert_scalar"):
        forward(torch.zeros(4))


def test_python_kernels_run_are_listed_and_warned_about_once() -> None:
    @torch.library.custom_op("torchgil_test::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        if x.sum() < 0:
            raise KeyError("negative")
        return x * 2

    doubled.register_fake(lambda x: torch.empty_like(x))

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return doubled(doubled(x)) + 1

    with pytest.warns(
        UserWarning, match="the kernel of torchgil_test::doubled is Python and takes the GIL back"
    ) as seen:
        forward = torchgil.nogil(Model(), (torch.ones(3),))
    assert len(seen) == 1
    assert "test_nogil" in seen[0].filename
    assert forward.python_ops == ("torchgil_test::doubled",)
    in_threads(lambda i: assert_same(forward(torch.full((3,), float(i))), torch.full((3,), 4.0 * i + 1)), 8)
    with pytest.raises(KeyError, match="negative") as error:
        forward(-torch.ones(3))
    notes = getattr(error.value, "__notes__", ["node 'doubled'"])  # Python 3.11
    assert "node 'doubled'" in notes[0]
    assert torchgil.nogil(mlp(), (torch.ones(2, 8),)).python_ops == ()


def test_python_kernels_for_other_devices_are_not_warned_about() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.torchgil.matmul(x, x)

    with torch.library._scoped_library("torchgil", "IMPL") as library:
        library.impl("matmul", torch.matmul, "CUDA")
        assert torchgil.nogil(Model(), (torch.ones(2, 2),)).python_ops == ()

    @torch.library.custom_op("torchgil_test::halved", mutates_args=(), device_types="cpu")
    def halved(x: Tensor) -> Tensor:
        return x / 2

    halved.register_fake(torch.empty_like)
    with pytest.warns(UserWarning, match="the kernel of torchgil_test::halved is Python"):  # the control
        torchgil.nogil(Of(lambda m, x: halved(x)), (torch.ones(2),))


def test_repr_says_inputs_dynamic_dimensions_instructions_and_backend() -> None:
    forward = torchgil.nogil(mlp(), (torch.ones(2, 8),), dynamic_shapes={"input": {0: Dim("batch", max=64)}})
    assert repr(forward) == (
        "torchgil.nogil(inputs=(input: float32[batch, 8]), dynamic=(batch in [0, 64]), instructions=3, "
        "backend='graph')"
    )


@pytest.mark.parametrize(
    "name", ["mlp dynamic batch", "decoder", "derived dimensions", "a buffer that does not persist"]
)
@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "torch.save"])
def test_copies_give_the_same_bits(name: str, how: str) -> None:
    case = next(c for c in CASES if c.name == name)
    _, program = export(case)
    forward = torchgil.nogil(program)
    if how == "torch.save":
        buffer = io.BytesIO()
        torch.save(forward, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    else:
        other = {
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
            "pickle": lambda f: pickle.loads(pickle.dumps(f)),
        }[how](forward)
    for seed in range(3):
        args, kwargs = case.inputs(seed)
        assert_same(other(*args, **kwargs), forward(*args, **kwargs))
    assert repr(other).split("dynamic")[0] == repr(forward).split("dynamic")[0]
    with pytest.raises((TypeError, ValueError), match="nogil"):
        other(torch.ones(1, 1, 1, 1), *args[1:], **kwargs)


LOCK = threading.Lock()


class OwnDefaults(torch.nn.Module):
    def forward(self, x, scale=2.0, then=lambda x: x, lock=LOCK):
        return then(x * scale)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_defaults_that_cannot_be_pickled_stay_behind(how) -> None:
    x = torch.randn(2)
    forward = torchgil.nogil(OwnDefaults(), (x,))
    other = how(forward)
    assert_same(forward(x, lock=LOCK), 2 * x)
    assert_same(other(x), 2 * x)
    assert_same(other(x, scale=2.0), 2 * x)
    with pytest.raises(TypeError, match="argument 'then' was not exported"):
        other(x, then=torch.relu)


def test_a_copy_has_weights_of_its_own_where_it_says_so() -> None:
    model, x = mlp(), torch.randn(2, 8)
    forward = torchgil.nogil(model, (x,))
    shallow, deep = copy.copy(forward), copy.deepcopy(forward)
    before = forward(x)
    with torch.no_grad():
        model[2].bias.add_(1)
    assert not torch.equal(shallow(x), before)
    assert_same(deep(x), before)


def test_what_a_forward_holds_is_freed_with_it() -> None:
    model, x = mlp(), torch.randn(2, 8)
    forward = torchgil.nogil(model, (x,))
    weight = weakref.ref(model[0].weight)
    result = forward(x)
    del model
    gc.collect()
    assert weight() is not None
    assert_same(forward(x), result)
    del forward
    gc.collect()
    assert weight() is None


def test_intermediates_are_freed_at_their_last_use() -> None:
    code = """
        import torch, torchgil
        torch.set_num_threads(1)
        class Deep(torch.nn.Module):
            def __init__(self, keep):
                super().__init__()
                self.keep = keep
            def forward(self, x):
                values = [x]
                for _ in range(40):
                    values.append(values[-1] + 1)
                return values[1:] if self.keep else values[-1]
        def memory(field):
            status = open("/proc/self/status").read()
            return int(status.split(field + ":")[1].split()[0]) / 1024
        x = torch.zeros(8 << 20 >> 2)  # 8 MiB
        def grown(forward):
            with open("/proc/self/clear_refs", "w") as peak:
                peak.write("5")  # it starts anew: what exporting took at most counts no more
            before = memory("VmRSS")
            forward(x)
            return memory("VmHWM") - before
        freeing, keeping = [torchgil.nogil(Deep(keep), (x,)) for keep in (False, True)]
        once = grown(freeing)
        assert once < 80, f"{once} MiB for values of 8 MiB each, of which two are needed at a time"
        control = grown(keeping)
        assert control > 40 * 8 * 0.7, f"the control, which keeps all forty, took {control} MiB"
    """
    run_in_child(code)


def test_memory_is_flat_over_many_calls_errors_included() -> None:
    code = """
        import gc, os, torch, torchgil
        torch.set_num_threads(1)
        class Tiny(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(4))
            def forward(self, x, index):
                a, b = (x * self.weight).split(2)
                return {"y": torch.cat([a, b])[index], "x": x}
        def resident():
            gc.collect()
            with open("/proc/self/statm") as f:
                return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        x, good, bad = torch.ones(4), torch.tensor([1]), torch.tensor([4])
        forward = torchgil.nogil(Tiny(), (x, good))
        def calls(n):
            for i in range(n):
                forward(x, good)
                if i % 10 == 0:
                    for wrong in ((x, bad), (x, 3), (x,)):
                        try:
                            forward(*wrong)
                        except (IndexError, TypeError):
                            continue
                        raise AssertionError("no error")
        calls(5_000)
        before = resident()
        calls(100_000)
        grown = resident() - before
        assert grown < 2 << 20, f"{grown} bytes more"
    """
    run_in_child(code, timeout=240)


def test_daemon_threads_in_a_call_do_not_disturb_the_end_of_the_process() -> None:
    code = """
        import threading, time, torch, torchgil
        torch.set_num_threads(1)
        x = torch.randn(256, 256)
        layers = [torch.nn.Linear(256, 256) for _ in range(20)]
        forward = torchgil.nogil(torch.nn.Sequential(*layers).eval(), (x,))
        kept = []  # torch releases the GIL to free a tensor, and that release does end the process
        def work():
            while True:
                kept.append(forward(x))
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
    """
    assert run_in_child(code, timeout=120, whole_end=True).stderr == ""


def test_a_call_inside_inference_mode_and_inside_no_grad_gives_the_same_bits() -> None:
    model, x = mlp(), torch.randn(2, 8, requires_grad=True)
    program = torch.export.export(model, (x,))
    forward, want = torchgil.nogil(program), reference(program)(x)
    assert_same(forward(x), want)
    with torch.no_grad():
        assert_same(forward(x), want)
    with torch.inference_mode():
        assert_same(forward(x), want)
    assert not forward(x).requires_grad
