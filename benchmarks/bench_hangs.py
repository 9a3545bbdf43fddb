"""A process hangs with the GIL held. What does each tool say of it, and how long does it take to say so?

Five hangs, each in a fresh process with a second thread that wants the GIL: a call of C that reads from a
pipe until another process writes, a deadlock of the GIL and a mutex, a computation, a sleep, and a garbage
collection whose finalizer sleeps. Four tools: ``faulthandler.dump_traceback_later`` and
``torchgil.Watchdog(hang=)`` are told of one second beforehand, and answer into the process's stderr;
``py-spy dump`` and gdb (with all native stacks; a gdb that knows Python says more) are run from outside
after it.

Counted by what stands in the answer: the function that hangs, a word that says which thread holds the GIL,
what it does (the system call, or a native frame), and that the other one waits for the GIL. Seconds are from
that one second, or from the start of the command, to the end of the answer. Afterwards: whether the process
went on and ended with exit code 0; the deadlock never ends, and is not asked. Unfair: gdb and py-spy need no
line of code beforehand, and work where the interpreter's own memory is damaged.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

HANGS = {
    "a read": "until_told()",
    "a deadlock with a mutex": "deadlock()",
    "a computation": "held.spin(SECONDS)",
    "a sleep": "held.sleep(SECONDS)",
    "a garbage collection": "collect()",
}
TOOLS = ("faulthandler", "py-spy", "gdb", "torchgil")
ASKED_S = 1.0
LASTS_S = 5.0

VICTIM = """
import ctypes, faulthandler, gc, os, subprocess, sys, threading, time
import torchgil
from torchgil import held

SECONDS = {lasts}
holding = ctypes.PyDLL(None)  # its calls keep the GIL
mutex = ctypes.create_string_buffer(64)
locked, entered = threading.Event(), []

def until_told():
    reader, writer = os.pipe()
    teller = subprocess.Popen(["sh", "-c", f"sleep {{SECONDS}}; echo"], stdout=writer)
    holding.read(reader, ctypes.create_string_buffer(1), 1)
    teller.wait()

def deadlock():
    locked.wait()
    entered.append(True)
    holding.pthread_mutex_lock(mutex)

class Slow:
    def __del__(self):
        held.sleep(SECONDS)

def collect():
    slow = Slow()
    slow.itself = slow
    del slow
    gc.collect()

def wants_the_gil():
    holding.pthread_mutex_lock(mutex)
    locked.set()
    while {deadlocks} and not entered:
        time.sleep(0.001)
    while True:
        time.sleep(0.05)

def hangs():
    {call}

threading.Thread(target=wants_the_gil, daemon=True).start()
locked.wait()
{before}
print("ready", flush=True)
hangs()
{after}
"""
BEFORE = {
    "faulthandler": "faulthandler.dump_traceback_later({asked})",
    "torchgil": "watchdog = torchgil.Watchdog(hang={asked}, on_hold=lambda _: None, on_hang=lambda _: None)\n"
    "watchdog.start()",
}
AFTER = {"faulthandler": "faulthandler.cancel_dump_traceback_later()", "torchgil": "watchdog.stop()"}


def _command(tool: str, pid: int) -> list[str]:
    if tool == "py-spy":
        found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"
        return [found, "dump", "--pid", str(pid)]
    return ["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt"]


def _from_inside(stderr: Path, ready: float) -> tuple[str, float]:
    """What the process itself has said once nothing more comes, and when the last of it came."""
    text, since = "", ready
    while time.monotonic() < ready + ASKED_S + 2 and (not text or time.monotonic() < since + 0.5):
        now = stderr.read_text()
        if now != text:
            text, since = now, time.monotonic()
        time.sleep(0.001)
    return text, since - ready - ASKED_S


def _from_outside(tool: str, pid: int) -> tuple[str, float]:
    time.sleep(ASKED_S)
    began = time.monotonic()
    done = subprocess.run(_command(tool, pid), capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr, time.monotonic() - began


def measure(configuration: dict[str, Any]) -> dict[str, Any]:
    """One hang, one tool."""
    hang, tool = configuration["hang"], configuration["tool"]
    deadlocks = hang == "a deadlock with a mutex"
    code = VICTIM.format(
        lasts=LASTS_S,
        deadlocks=deadlocks,
        call=HANGS[hang],
        before=BEFORE.get(tool, "").format(asked=ASKED_S),
        after=AFTER.get(tool, ""),
    )
    with tempfile.TemporaryDirectory() as folder:
        script, stderr = Path(folder, "victim.py"), Path(folder, "stderr")
        script.write_text(code)
        with stderr.open("w") as file:
            command = [sys.executable, str(script)]
            victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            assert victim.stdout
            assert victim.stdout.readline() == "ready\n", stderr.read_text()
            inside = tool in BEFORE
            text, seconds = (
                _from_inside(stderr, time.monotonic()) if inside else _from_outside(tool, victim.pid)
            )
            if configuration.get("show"):
                print(f"--- {hang}, {tool}, {seconds:.3f} s\n{text}", file=sys.stderr)
            goes_on = None if deadlocks else victim.wait(60) == 0
        finally:
            victim.kill()
            victim.wait()
    return {"seconds": seconds, "goes_on": goes_on, **_said(text, hang)}


def _said(text: str, hang: str) -> dict[str, bool]:
    does = {
        "a read": ("sleeps in read", "read ("),
        "a deadlock with a mutex": ("sleeps in futex", "lock_wait", "pthread_mutex_lock"),
        "a computation": ("it runs", "spin"),
        "a sleep": ("sleeps in clock_nanosleep", "nanosleep"),
        "a garbage collection": ("garbage collection", "Garbage-collecting", "gc_collect"),
    }
    return {
        "line": any(word in text for word in ("in hangs", "hangs (")),
        "holder": any(word in text for word in ("has held it", "+gil")),
        "does": any(word in text for word in does[hang]),
        "waits": "waits for the GIL" in text or "take_gil" in text,
    }


def parent(options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    peers = {**harness.versions("py-spy"), "gdb": _gdb()}
    harness.stay_where_missing(options, peers)
    for tool in TOOLS:
        if tool in peers and peers[tool] is None:
            print(f"{tool} is not here", file=sys.stderr)
            continue
        found: dict[str, list[dict[str, Any]]] = {hang: [] for hang in HANGS}
        for _ in range(options.rounds):
            for hang in list(HANGS)[: 2 if options.quick else None]:
                harness.progress(f"{tool}: {hang}")
                found[hang].append(measure({"hang": hang, "tool": tool, "show": options.show}))
        every = [each for of_hang in found.values() for each in of_hang]
        ended = [each["goes_on"] for each in every if each["goes_on"] is not None]
        rows.append(
            {
                "tool": tool,
                "answers": len(every),
                **{key: sum(each[key] for each in every) for key in ("line", "holder", "does", "waits")},
                "seconds": harness.spread([each["seconds"] for each in every]),
                "goes_on": sum(ended),
                "asked_to_go_on": len(ended),
            }
        )
    print(f"written: {harness.save('hangs', rows, options.json, peers=peers)}")


def _gdb() -> str | None:
    """Its version; None: it is not here."""
    if not shutil.which("gdb"):
        return None
    done = subprocess.run(["gdb", "--version"], capture_output=True, text=True)
    return done.stdout.splitlines()[0].split()[-1] if done.returncode == 0 else None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", action="store_true", help="print each answer")


if __name__ == "__main__":
    harness.main(__doc__, measure, parent, add_options)
