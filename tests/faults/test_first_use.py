"""The first use of torchgil in a process, beside whatever else that process does at the moment."""

from __future__ import annotations

import functools
import os
import re
import sys

import pytest
import torch

import torchgil

from ..conftest import run_in_child


def test_every_name_is_found_by_threads_that_ask_for_the_first_time_together():
    run_in_child(
        """
        import os, random, sys, threading, torch, torchgil
        for seed in range(4):
            if pid := os.fork():  # each has imported nothing of torchgil's wings
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, seed
                continue
            sys.setswitchinterval(1e-5)
            start, found = threading.Barrier(8), []
            def run(i):
                names = sorted(torchgil._PUBLIC)
                random.Random(8 * seed + i).shuffle(names)
                start.wait()
                found.append([getattr(torchgil, name) for name in names])
            threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            os._exit(len(found) != 8)
        """
    )


# The interpreter's own race: as it ends, weakref goes through all finalizers, also those that a daemon thread
# adds meanwhile (torch's imports do). Nothing of torchgil's is in that traceback.
FINALIZE_AT_EXIT = re.compile(
    r"Exception ignored in atexit callback.*finalize\._exitfunc.*\n"
    r"Traceback \(most recent call last\):\n"
    r'(?:  File ".*[/\\]weakref\.py", line .*\n(?: {4}.*\n)*)+'
    r"RuntimeError: dictionary changed size during iteration\n"
)
# Triton's extension, which torch for CUDA imports, counts what a daemon thread keeps at the end.
LEAKS_OF_OTHERS = re.compile(
    r"^(?:nanobind: (?:leaked|this is) .*| - (?:leaked|\.\.\.) .*|See https://nanobind.*)(?:\n|\Z)",
    re.MULTILINE,
)
# Of which `first_use.main` allows one for each pair: see "What is not promised" in docs/reliability.md.
ABORT_OF_TORCH = re.compile(r"^terminate called without an active exception\n", re.MULTILINE)
TIMES = int(os.environ.get("TORCHGIL_STRESS_TIMES", "1"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the neighbours are Linux's")
def test_each_entry_point_comes_first_beside_each_neighbour(request):
    """Loading, forks, exit, collections, signals, other first uses, loader callbacks, sub-interpreters."""
    environment = {}
    if TIMES > 1:
        model = (torch.nn.ReLU(), (torch.ones(2),))
        package = torchgil.nogil(*model, backend="inductor", cache_dir=request.config.cache.mkdir("packages"))
        environment["TORCHGIL_STRESS_PACKAGE"] = str(package.path)
    child = run_in_child(
        "import sys; from tests.faults import first_use; first_use.main(int(sys.argv[1]))",
        str(TIMES),
        timeout=240 + 60 * TIMES,
        env=environment,
        whole_end=True,
    )
    others = (FINALIZE_AT_EXIT, LEAKS_OF_OTHERS, ABORT_OF_TORCH)
    assert functools.reduce(lambda said, other: other.sub("", said), others, child.stderr) == ""
