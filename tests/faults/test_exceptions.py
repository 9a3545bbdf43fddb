"""Exceptions that are thrown while the GIL is released: of the right type, the GIL back, nothing kept."""

from __future__ import annotations

import json

from ..conftest import run_in_child

KINDS = {
    "bad shapes": "RuntimeError: size of tensor",
    "out of memory": "RuntimeError: allocate memory|Storage size calculation overflowed",
    "a kernel in Python": "KeyError: by the kernel",
    "an index in nogil": "IndexError: out of bounds",
    "a kernel in Python within nogil": "KeyError: by the kernel",
    "backward": "ValueError: by the backward",
}

CODE = """
    import ctypes, functools, json, re, sys, threading, warnings
    import torch, torchgil
    from tests.support.unchanged import unchanged
    warnings.simplefilter("ignore")
    small, huge = torch.ones(3), torch.ones(1).expand(1 << 50)
    good, bad = torch.tensor([1]), torch.tensor([9])
    library = torch.library.Library("torchgil_test_exceptions", "DEF")
    library.define("throw(Tensor x) -> Tensor")
    def kernel(x):
        raise KeyError("by the kernel")
    library.impl("throw", kernel, "CPU")
    library.impl("throw", lambda x: torch.empty_like(x), "Meta")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()
        @staticmethod
        def backward(ctx, gradient):
            raise ValueError("by the backward")

    class Index(torch.nn.Module):
        def forward(self, x, i):
            return torch.cat([x, x])[i]

    class Throws(torch.nn.Module):
        def forward(self, x):
            return torch.ops.torchgil_test_exceptions.throw(x + 1) * 2

    indexed = functools.cache(lambda: torchgil.nogil(Index(), (small, good)))
    throwing = functools.cache(lambda: torchgil.nogil(Throws(), (small,)))
    calls = {
        "bad shapes": lambda ops: ops.add(small, small[:2]),
        "out of memory": lambda ops: ops.add(huge, huge),
        "a kernel in Python": lambda ops: torch.ops.torchgil_test_exceptions.throw(ops.add(small, small)),
        "an index in nogil": lambda ops: indexed()(small, bad),
        "a kernel in Python within nogil": lambda ops: throwing()(small),
        "backward": lambda ops: ops.rms_norm(
            Fails.apply(small.clone().requires_grad_()), small).sum().backward(),
    }
    policies = [torchgil.released, torchgil.held, torchgil.adaptive, torch.ops.torchgil]

    def thrown(kind, error, text, times):
        for i in range(times):
            try:
                calls[kind](policies[i % 4])
            except Exception as raised:
                assert ctypes.pythonapi.PyGILState_Check() == 1
                if type(raised).__name__ != error or not re.search(text, str(raised)):
                    return repr(raised)
            else:
                return "no error"

    def in_two_threads(kind, error, text, times):
        found = []
        run = lambda: found.append(thrown(kind, error, text, times))
        threads = [threading.Thread(target=run) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found == [None, None], (kind, found)

    for kind, expected in json.loads(sys.argv[1]).items():
        thrown(kind, *expected.split(": ", 1), 1)
        in_two_threads(kind, *expected.split(": ", 1), 100)
        with unchanged(grown_mib=4):
            in_two_threads(kind, *expected.split(": ", 1), 500)
"""


def test_a_thousand_exceptions_of_each_kind_leave_nothing():
    run_in_child(CODE, json.dumps(KINDS))


def test_another_exception_than_was_said_is_found():
    child = run_in_child(CODE, json.dumps({"bad shapes": "IndexError: size of tensor"}), check=False)
    assert "AssertionError: ('bad shapes', [" in child.stderr
    assert "RuntimeError(" in child.stderr
