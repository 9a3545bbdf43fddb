"""Children that hang with the GIL held, and what was told of it."""

from __future__ import annotations

import re
import textwrap

from tests.conftest import Child, run_in_child

# What a child begins with. `until_told` holds the GIL in a read, until another process writes.
BEGIN = '''
import contextlib, ctypes, gc, os, subprocess, sys, threading, time
import torchgil
from torchgil import held

holding = ctypes.PyDLL(None)  # its calls keep the GIL

def until_told(seconds):
    reader, writer = os.pipe()
    teller = subprocess.Popen(["sh", "-c", f"sleep {seconds}; echo"], stdout=writer)
    holding.read(reader, ctypes.create_string_buffer(1), 1)
    teller.wait()
    os.close(reader), os.close(writer)

def full_pipe():
    """The end to write to of a pipe that nobody reads; it is a wait from now on."""
    writer = os.pipe()[1]
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    return writer

def wanting():
    while True:
        time.sleep(0.01)

def watched(seconds, **options):
    return torchgil.Watchdog(hang=seconds, on_hold=lambda hold: None, on_hang=lambda hang: None, **options)
'''


def child(code: str, timeout: float = 60, check: bool = True) -> Child:
    return run_in_child(BEGIN + textwrap.dedent(code), timeout=timeout, check=check)


def told(done: Child) -> list[str]:
    """What was told while a hang went on, or when it ended; each begins with "torchgil: "."""
    return [part for part in re.split(r"^(?=torchgil: )", done.stderr, flags=re.MULTILINE) if part.strip()]


def functions(part: str) -> list[list[str]]:
    """Of each stack in it, the holder's first, the functions of the program, the innermost last."""
    stacks = re.split(r"most recent call last:|waits for the GIL:", part)[1:]
    found = [re.findall(r", in (.*)$", stack, re.MULTILINE) for stack in stacks]
    # A child is run by exec(), which is a frame of its own.
    return [names[names.index("<module>") + 1 :] if "<module>" in names else names for names in found]
