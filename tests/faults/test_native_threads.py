"""The ops on threads that Python did not start and knows nothing of."""

from __future__ import annotations

import pytest

from ..conftest import run_in_child


def test_the_ops_on_a_plain_thread_without_a_python_state():
    """torch.jit.fork runs its call on a std::thread of torch's own; spin and sleep it would optimize away."""
    child = run_in_child(
        """
        import sys, threading, warnings
        import torch, torchgil
        from torchgil.ops import witness
        warnings.simplefilter("ignore")
        library = torch.library.Library("torchgil_test_native", "DEF")
        library.define("python(Tensor x) -> Tensor")
        library.impl("python", lambda x: torchgil.held.add(x, x), "CPU")

        script = torch.jit.CompilationUnit('''
        def every(x: Tensor):
            kept = torch.ops.torchgil.nms(x.abs().cumsum(1), x[:, 0], 0.5)
            y = torch.ops.torchgil.rms_norm(torch.ops.torchgil.matmul(x, x), x[0])
            return torch.ops.torchgil.add(y, torch.ops.torchgil_test_native.python(x)), kept

        def forked(x: Tensor):
            calls = [torch.jit.fork(every, x) for _ in range(20)]
            return [torch.jit.wait(call) for call in calls]

        def wrong(x: Tensor):
            return torch.jit.wait(torch.jit.fork(torch.ops.torchgil.add, x, x[:2, :3]))
        ''')
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        python = {thread.native_id for thread in threading.enumerate()}
        with torchgil.trace() as t, torchgil.Watchdog(threshold=1, on_hold=print):
            with witness() as records:
                results = script.forked(x)
        seen = {r.op for r in records if r.thread_id not in python and not r.held_gil}
        assert seen == {"add", "matmul", "rms_norm", "nms"}, seen
        assert any(r.held_gil for r in records)  # the control: the op whose kernel is Python
        y, kept = script.every(x)
        assert all(torch.equal(a, y) and torch.equal(b, kept) for a, b in results)
        calls = {op.name: op.calls for op in t.report().ops}
        assert calls["torchgil::rms_norm"] == 20, calls
        try:
            script.wrong(x)
        except RuntimeError as error:
            assert "must match the size" in str(error), error
        else:
            raise AssertionError("no error")
        """,
        timeout=100,
    )
    assert child.stderr == ""


@pytest.mark.parametrize("policy", ["released", "held", "adaptive"])
def test_forward_and_backward_hooks_call_ops_under_each_policy(policy):
    import torch

    import torchgil

    ops, seen = getattr(torchgil, policy), []
    layer = torch.nn.Linear(3, 3)
    layer.register_forward_pre_hook(lambda _, args: (ops.add(args[0], args[0]),))
    layer.register_forward_hook(lambda _, args, result: ops.matmul(result, result))
    layer.register_full_backward_hook(lambda _, gi, go: seen.append(ops.rms_norm(go[0], go[0][0]).shape))
    x = torch.ones(3, 3, requires_grad=True)
    result = layer(x)
    result.sum().backward()
    with torch.no_grad():
        plain = torch.nn.functional.linear(x + x, layer.weight, layer.bias)
        torch.testing.assert_close(result, plain @ plain)
    assert seen == [(3, 3)]
