"""What a process has open, and that it is the same afterwards."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import torchgil


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> list[str]:
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the one that listed them
            continue
    return sorted(opened)


def _threads() -> int:
    """Of the process, without those of autograd: torch 2.14 starts them when it likes, for good."""
    if os.environ.get("SANITIZE") == "thread":
        return 0  # so does that sanitizer, with one of its own
    count = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/comm") as name:
                count += not name.read().startswith("pt_autograd")
        except FileNotFoundError:  # it has ended meanwhile
            continue
    return count


def _state() -> dict[str, object]:
    return {
        "python threads": sorted(thread.name for thread in threading.enumerate()),
        "threads": _threads(),
        "files": _open_files(),
        "switch interval": sys.getswitchinterval(),
        "intra-op threads": torch.get_num_threads(),
        "adaptive threshold": torchgil.adaptive_threshold(),
        "Thread.start": threading.Thread.start,
        "profiler": torch._C._autograd._profiler_enabled(),
    }


def _settled() -> dict[str, object]:
    """The state once two looks agree: a thread that was joined is the system's for a moment more."""
    state: dict[str, object] = {}
    while state != (state := _state()):
        time.sleep(0.02)
    return state


@contextmanager
def unchanged(*, grown_mib: float | None = None, within_s: float = 10) -> Iterator[None]:
    """Raises unless threads, files and settings are afterwards as before, and memory at most so much more.

    What ends on its own, as a thread does after its last Python line, has some seconds for it.
    """
    gc.collect()
    before, memory = _settled(), resident_bytes()
    yield
    end = time.monotonic() + within_s
    while True:
        gc.collect()
        after = _state()
        changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        if not changed:
            break
        assert time.monotonic() < end, f"not as before: {changed}"
        time.sleep(0.02)
    grown = (resident_bytes() - memory) / 2**20
    assert grown_mib is None or grown <= grown_mib, f"{grown:.1f} MiB more than before"
