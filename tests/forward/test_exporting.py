"""Exporting a model that other threads call; what is one for the process, from several threads at once."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.forward.comparing import assert_close, assert_same, reference
from torchgil.forward._exporting import structural_copy

X = torch.ones(2, 4)


class Net(nn.Module):
    """Two layers, one of them used twice under two names, a tied weight, buffers and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(4, 4), nn.GELU()
        self.second = nn.Sequential(self.first, self.act, nn.Linear(4, 4, bias=False))
        self.second[2].weight = self.first.weight
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.plain = torch.full((4,), 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x))) * self.scale + self.shift + self.plain


def net(make: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


SERVED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "modules and weights shared": (Net, (2, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), (1, 3, 8)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), (1, 2, 5, 5)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(4, 4)), (2, 4)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), (2, 4)),
}


@pytest.mark.parametrize("name", SERVED)
def test_exports_beside_threads_that_serve_the_model_fail_neither(name: str) -> None:
    make, shape = SERVED[name]
    model, x = net(make), torch.ones(shape)
    with torch.inference_mode():
        want = model(x)
    built: list[Any] = []
    done = threading.Event()

    def serve(_: int) -> int:
        served = 0
        with torch.inference_mode():
            while not done.is_set() or served == 0:
                # close only: while it traces, torch.export turns oneDNN off for the whole process
                assert_close(model(x), want)
                served += 1
        return served

    def work(thread: int) -> int:
        if thread:
            return serve(thread)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The tensor attributes self.0._flat_weights")  # torch's own
                built.extend(torchgil.nogil(model, (x,)) for _ in range(5))
        finally:
            done.set()
        return 5

    assert all(in_threads(work, 3))
    assert len(built) == 5
    for forward in built:
        assert_same(forward(x), reference(forward.exported_program)(x))
        assert_close(forward(x), want)


def test_exporting_a_served_model_itself_fails() -> None:
    """The positive control: what the copy is for."""
    code = """
        import threading, torch
        torch.set_num_threads(1)
        model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(6))).eval()
        x, failed, done = torch.ones(2, 4), threading.Event(), threading.Event()
        torch.export.export(model, (x,))  # alone it works
        def serve():
            while not done.is_set():
                try:
                    with torch.inference_mode():
                        model(x)
                except Exception:
                    failed.set()
        threads = [threading.Thread(target=serve) for _ in range(2)]
        for thread in threads:
            thread.start()
        while not failed.is_set():
            try:
                torch.export.export(model, (x,))
            except Exception:
                failed.set()
        done.set()
        for thread in threads:
            thread.join()
    """
    run_in_child(code)


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    """By torch alone; skips the test where this release refuses attributes that change in the forward."""
    try:
        return torch.export.export(model, (X,))
    except ValueError as error:
        pytest.skip(f"torch {torch.__version__} does not export it: {error}")


def hooked() -> nn.Module:
    model = Net()
    model.stats = {"calls": 0}  # type: ignore[assignment]
    model.first.register_forward_pre_hook(lambda module, args: (args[0] + module.bias,))
    model.act.register_forward_hook(_twice)
    return model


def _twice(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


class Holder:
    """Something of the user's that holds tensors."""

    def __init__(self) -> None:
        self.table = {"a": [torch.full((4,), 5.0)]}


class Odd(Net):
    """Tensors wherever Python lets one put them, and modules in a list that no one registered."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()
        self.layers = (nn.Linear(4, 4),)
        self.kept = self.first.weight * 2  # no leaf: torch copies no such tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](super().forward(x)) + self.holder.table["a"][0]


class Old(nn.Module):
    """Weight norm as it was: a hook that makes the weight anew in each forward."""

    def __new__(cls) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.weight_norm(nn.Linear(4, 4))


COPIED = {
    "shared": Net,
    "hooks": hooked,
    "tensors in odd places": Odd,
    "parametrization": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "weight norm": Old,
    "traced by fx": lambda: torch.fx.symbolic_trace(Net()),
}


@pytest.mark.filterwarnings("ignore:The tensor attribute self.weight was assigned:UserWarning")  # weight_norm
@pytest.mark.parametrize("name", COPIED)
def test_a_copy_shares_every_tensor_and_gives_the_same_program(name: str) -> None:
    model = net(COPIED[name])
    with torch.inference_mode():
        want = model(X)
    twin = structural_copy(model)
    ours = [m for m in model.modules() if not isinstance(m, nn.GELU)]
    assert not {id(m) for m in ours} & {id(m) for m in twin.modules()}
    weights = {n: id(t) for n, t in (*model.named_parameters(), *model.named_buffers())}
    assert weights == {n: id(t) for n, t in (*twin.named_parameters(), *twin.named_buffers())}
    itself = exported(model)
    forward = torchgil.nogil(model, (X,))
    assert forward.exported_program.graph_module.code == itself.graph_module.code
    assert_same(forward(X), want)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.mul_(0.5)
        assert_close(forward(X), model(X))
    for tensor in (*forward.exported_program.state_dict.values(),):
        assert any(tensor is t for t in (*model.parameters(), *model.buffers()))


def test_a_change_in_place_of_a_plain_tensor_is_seen() -> None:
    model = net(Odd)
    forward = torchgil.nogil(model, (X,))
    before = forward(X)
    model.plain.add_(1)
    model.holder.table["a"][0].add_(1)
    with torch.inference_mode():
        assert_close(forward(X), model(X))
    assert not torch.equal(forward(X), before)


def test_what_the_trace_changes_is_changed_in_the_copy_alone() -> None:
    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.shape)
            return super().forward(x)

    exported(net(Counts))
    model = net(Counts)
    forward = torchgil.nogil(model, (X,))
    assert model.seen == []
    with torch.inference_mode():
        assert_same(forward(X), model(X))


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second.lock = threading.Lock()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        with self.second.lock:  # type: ignore[attr-defined]
            return super().forward(x)


class Forgetful(Net):
    """Leaves an attribute out of its copies."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 0.5

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "half"}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.half


class Clones(Net):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        twin = Clones()
        twin.load_state_dict(self.state_dict())
        return twin


def closed() -> nn.Module:
    model = Net()
    inner = model.first.forward
    model.act.forward = lambda x: inner(x).relu()  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Locked, r"because 'second\.lock' cannot be copied \(cannot pickle '_thread.lock' object\)"),
        (Forgetful, "because a copy of it has no 'half'"),
        (Clones, r"because a copy of it has another 'scale'"),
        (closed, "because its forward takes 'first.weight' from a closure, a global or a list"),
    ],
)
def test_a_module_that_cannot_be_copied_is_exported_itself_with_a_warning(
    make: Callable[[], nn.Module], why: str
) -> None:
    model = net(make)
    with torch.inference_mode():
        want = model(X)
    with pytest.warns(UserWarning, match=f"the model itself is exported.*{why}") as seen:
        forward = torchgil.nogil(model, (X,))
    assert [w.filename for w in seen] == [__file__]
    assert_same(forward(X), want)
    assert forward.exported_program.state_dict["first.weight"] is model.first.weight


def test_forwards_are_pickled_unpickled_and_built_in_six_threads_at_once() -> None:
    model = net()
    forward = torchgil.nogil(model, (X,))
    want, data = forward(X), pickle.dumps(forward)

    def work(thread: int) -> list[Any]:
        return [
            pickle.loads(data),
            pickle.loads(pickle.dumps(forward)),
            copy.deepcopy(forward),
            torchgil.nogil(model, (X,)),
        ]

    for forwards in in_threads(work, 6):
        for other in forwards:
            assert_same(other(X), want)


def test_torch_alone_loads_in_one_thread_at_a_time() -> None:
    """The positive control: what the lock is for."""
    code = """
        import io, threading, torch
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.ones(2, 4),)), buffer)
        failed = []
        def load(start):
            start.wait()
            try:
                torch.export.load(io.BytesIO(buffer.getvalue()))
            except AssertionError as error:
                failed.append(error)
        while not failed:
            start = threading.Barrier(6)
            threads = [threading.Thread(target=load, args=(start,)) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    """
    run_in_child(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_forked_amid_an_export_exports() -> None:
    code = """
        import os, threading, torch, torchgil
        from torchgil.forward._exporting import alone
        model, x = torch.nn.Linear(4, 4).eval(), torch.ones(2, 4)
        torchgil.nogil(model, (x,))
        inside, done = threading.Event(), threading.Event()
        def hold():
            with alone():
                inside.set()
                done.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait()
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(torchgil.nogil(model, (x,))(x), model(x)) else 1)
        _, status = os.waitpid(child, 0)
        done.set()
        thread.join()
        assert status == 0, status
    """
    run_in_child(code)
