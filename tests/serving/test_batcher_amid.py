"""Ctrl-C, signal handlers and finalizers at each step of a call: nobody waits for ever, numbers add up."""

from __future__ import annotations

import os

import pytest

from tests.conftest import run_in_child

# At a few of the steps; `make stress` does each of the things at each of them.
STRIDE = os.environ.get("TORCHGIL_TEST_STRIDE", "29")
ACTS = ["ask", "end", "end at once", "abandon", "cancel", "use the pool", "close the pool"]
ALL = [[act] for act in ACTS] if STRIDE == "1" else [ACTS]

RUN = "import runpy; runpy.run_module('tests.serving.amid', run_name='__main__')"


def test_ctrl_c_at_any_step_of_a_call_leaves_nothing_undone():
    run_in_child(RUN, "interrupt", "caller", STRIDE, "all", timeout=1200)


@pytest.mark.parametrize("acts", ALL, ids="-".join)
def test_a_handler_at_any_step_of_a_call_waits_for_nobody(acts):
    run_in_child(RUN, ",".join(acts), "caller", STRIDE, "all", timeout=1200)


@pytest.mark.parametrize("acts", ALL, ids="-".join)
def test_nor_does_a_finalizer_at_any_step_of_the_worker(acts):
    run_in_child(RUN, ",".join(acts), "worker", STRIDE, "submit,drop,pool", timeout=1200)
