"""What a watchdog and a monitor have in common: their start and their end."""

from __future__ import annotations

import sys
import sysconfig

import pytest

import torchgil
from tests.conftest import run_in_child
from torchgil._gil_half import C


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
        """,
        whole_end=True,
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


INTERRUPTED = """
    import gc, itertools, os, sys, threading, time, torchgil
    from tests.support.interrupts import Interrupts
    from torchgil.watching import _background as background
    from torchgil.watching import _thread_life as thread_life
    make = getattr(torchgil, sys.argv[1])
    ours = os.path.dirname(background.__file__)

    def threads():
        names = {thread.name for thread in threading.enumerate()}
        for task in os.listdir("/proc/self/task"):
            try:
                names.add(open(f"/proc/self/task/{task}/comm").read().strip())
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                pass
        return {name for name in names if name.startswith("torchgil-")}

    for nth in itertools.count(1):
        watching = make()
        interrupts, met = Interrupts(nth, ours), None
        try:
            sys.setprofile(interrupts)
            if sys.argv[2] == "with":
                with watching:
                    sys.setprofile(interrupts)
            else:
                watching.start()
                watching.stop()
        except KeyboardInterrupt as error:
            if interrupts.at[0] != "return":  # Ctrl-C is raised just after, where that frame is gone
                met = error  # and with it, as in a debugger, the frames that it came through
        finally:
            sys.setprofile(None)
        if sys.argv[2] == "start" and watching.running:
            watching.stop()  # it was interrupted as it was left: the caller knows that it runs
        end = time.monotonic() + 10  # the last step of a Python thread is its own
        while threads() and time.monotonic() < end:
            time.sleep(0.001)
        assert not threads(), (interrupts.at, threads())
        assert not watching.running and not background._running and not thread_life._listeners, interrupts.at
        if interrupts.left > 0:
            break
    print(nth)
"""


@pytest.mark.parametrize("kind", ["Watchdog", "GilMonitor"])
@pytest.mark.parametrize("way", ["with", "start"])
def test_ctrl_c_at_any_step_leaves_no_thread(kind: str, way: str) -> None:
    child = run_in_child(INTERRUPTED, kind, way)
    assert int(child.stdout) > 20  # so many steps were interrupted, the last of them none


def test_a_monitor_beside_it_has_a_watchdog_ask_for_the_gil_no_more_often() -> None:
    child = run_in_child("""
        import time, torchgil
        knocks = {False: 0, True: 0}
        for monitored in 3 * (False, True):
            monitor = torchgil.GilMonitor()
            if monitored:
                monitor.start()
            with torchgil.Watchdog(on_hold=lambda hold: None) as watchdog:
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    sum(range(100))
                knocks[monitored] += watchdog.knocks
            monitor.stop()
        assert knocks[False] > 30, knocks
        assert knocks[True] < 1.5 * knocks[False], knocks
    """)
    assert (child.stdout, child.stderr) == ("", "")
