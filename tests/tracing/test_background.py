"""What a watchdog and a monitor have in common: their start and their end."""

from __future__ import annotations

import sys
import sysconfig

import pytest

import torchgil
from tests.conftest import run_in_child
from torchgil._build import C


@pytest.mark.parametrize("kind", ["Watchdog", "GilMonitor"])
def test_cannot_be_started_at_interpreter_exit(kind: str) -> None:
    child = run_in_child(
        f"""
        import atexit
        def late():
            try:
                torchgil.{kind}().start()
            except RuntimeError as error:
                print(error)
        atexit.register(late)  # handlers run in reverse order: after its own
        import torchgil
        torchgil.{kind}
        """
    )
    assert f"a {kind} cannot be started at interpreter exit" in child.stdout


@pytest.mark.parametrize(
    ("gil", "free_threaded", "why"),
    [
        (False, True, "runs without a GIL, so nothing can hold it"),
        (True, True, "in a free-threaded build that has turned it on"),
        (True, False, r"cannot be read on Python 3\.\d+ \(3.10 to"),
    ],
)
def test_says_why_nothing_is_watched(
    monkeypatch: pytest.MonkeyPatch, gil: bool, free_threaded: bool, why: str
) -> None:
    variable = sysconfig.get_config_var
    monkeypatch.setattr(C, "gil_holder_known", lambda: False)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: gil, raising=False)
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda n: free_threaded if n == "Py_GIL_DISABLED" else variable(n)
    )
    with pytest.warns(RuntimeWarning, match=f"{why}.*; nothing is watched"), torchgil.GilMonitor():
        pass
