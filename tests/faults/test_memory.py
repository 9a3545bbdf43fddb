"""Memory, threads and files stay as they are over very many calls and traces."""

from __future__ import annotations

import os

from ..conftest import run_in_child

# `make stress` multiplies: a million calls, a thousand traces.
TIMES = int(os.environ.get("TORCHGIL_STRESS_TIMES", "1"))

CODE = """
    import sys, torch, torchgil
    from tests.support.unchanged import unchanged
    times = int(sys.argv[1])
    torch.set_num_threads(1)
    x = torch.ones(4)

    def calls(n):
        for _ in range(n // 4):
            torchgil.released.add(x, x)
            torchgil.adaptive.add(x, x)
            torchgil.held.rms_norm(x, x)
            torch.ops.torchgil.matmul(x, x)

    def traces(n):
        for _ in range(n):
            with torchgil.trace(max_events=1000) as t:
                calls(8)
            t.report()

    for name, run, n in (("calls", calls, 50_000 * times), ("traces", traces, 50 * times)):
        run(n // 10)
        with unchanged(grown_mib=4):
            run(n)
        print(name, n)
    kept = []
    try:
        with unchanged(grown_mib=4):  # the control
            for _ in range(3000):
                kept.append(torchgil.released.add(torch.ones(512), x[0]))
    except AssertionError as error:
        print(error)
"""


def test_memory_is_flat_over_calls_and_traces_and_growth_is_found():
    child = run_in_child(CODE, str(TIMES), timeout=100 + 20 * TIMES)
    assert child.stdout.splitlines()[:2] == [f"calls {50_000 * TIMES}", f"traces {50 * TIMES}"]
    assert "MiB more than before" in child.stdout
