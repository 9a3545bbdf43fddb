"""Settings of threads: intra-op threads, switch interval, usable cores.

A setting is made, verified and put back; a value that cannot be is a ValueError
and changes nothing.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
import threading
from collections.abc import Callable
from contextlib import _GeneratorContextManager
from pathlib import Path
from typing import TypeVar

from torchgil._checks import number, whole
from torchgil._setting import Blocks, Setting

__all__ = ["intra_op_threads", "set_own_intra_op_threads", "switch_interval", "usable_cores"]

T = TypeVar("T")

# torch.set_num_threads() writes the process's default as well as the calling
# thread's number. Whoever sets, checks and puts the default back is alone in it.
# The locks are reentrant: a signal handler or a finalizer that runs while its own thread
# is in here may use a setting, and puts back what it found.
_set_num_threads_lock = threading.RLock()
_switch_interval_lock = threading.RLock()


def _renew_locks() -> None:
    global _set_num_threads_lock, _switch_interval_lock
    # In a forked child nobody is left to release the old ones.
    _set_num_threads_lock, _switch_interval_lock = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def intra_op_threads(n: int) -> Setting:
    """The calling thread's ops use n intra-op threads inside the block.

    ``torch.set_num_threads(n)`` changes the calling thread and the default of
    threads yet to come. Here the other threads, and that default, stay as they are.

    A thread's number is kept: by itself torch sets it to the process's default again at the first
    ``at::parallel_for`` of each extension that a thread calls. The first use in a process
    looks for them in all that is loaded: some 10 ms.

    As a decorator it is around each call of a function, and around each step of a generator or
    coroutine, so that other tasks of the event loop have their own number. A change of the number starts
    short-lived threads, some 0.2 ms: where a coroutine has many steps, put a block around its ops instead.
    A block ends in the thread that began it; another thread that ends it changes nothing.

    Args:
        n: Number of threads that one op may use, at least 1.

    Returns:
        A context manager, or a decorator.

    Raises:
        ValueError: n is no integer of at least 1; nothing is changed.
        RuntimeError: As the block begins: torch did not take the number; the old one is back.

    >>> import torch, torchgil
    >>> before = torch.get_num_threads()
    >>> with torchgil.intra_op_threads(1):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    # 4096 is far over any machine's cores: more is a mistake, and would start as many threads.
    wanted = "an integer from 1 to 4096"
    n = whole("intra_op_threads: n", n, 1, 4096, wanted=wanted, kind=ValueError)
    return Setting(functools.partial(_own_threads, n), f"torchgil.intra_op_threads({n})")


def set_own_intra_op_threads(n: int) -> None:
    """Sets the calling thread's number alone, for good, and makes sure of it.

    A thread that made no parallel region yet takes the default at its first, over
    its own setting; get_num_threads() counts as that, so it pins what was just set.
    So it is with the first region in each library that has at::parallel_for compiled in,
    and those are told to leave the thread as it is.

    Raises:
        RuntimeError: torch did not take the number; the old one is back.
    """
    import torch

    from torchgil._torch_half import C

    with _set_num_threads_lock:
        before = torch.get_num_threads()
        C.keep_own_intra_op_threads()
        if before == n:
            return
        default = _in_fresh_thread(torch.get_num_threads)
        put_back = functools.partial(_in_fresh_thread, lambda: torch.set_num_threads(default or before))
        try:
            torch.set_num_threads(n)
            if torch.get_num_threads() != n:
                torch.set_num_threads(before)
        finally:
            if default is not None:
                try:
                    put_back()
                except BaseException:  # Ctrl-C amid it
                    put_back()
                    raise
        taken = torch.get_num_threads()
    if taken != n:
        raise RuntimeError(f"asked torch for {n} intra-op threads, got {taken}")


def _own_number() -> int:
    importlib.import_module("torchgil._torch_half")  # says what is missing, where there is no torch
    import torch

    return torch.get_num_threads()


class _OfThread(threading.local):
    """The blocks of intra-op threads that a thread has open."""

    def __init__(self) -> None:
        self.blocks = Blocks(_own_number, set_own_intra_op_threads)


_of_thread = _OfThread()


def _own_threads(n: int) -> _GeneratorContextManager[None]:
    ident = threading.get_ident()
    return _of_thread.blocks.block(n, lambda: threading.get_ident() == ident)


def _in_fresh_thread(fn: Callable[[], T]) -> T | None:
    """Calls fn in a new thread, which has no setting of its own, and returns its result.

    None where the interpreter ends, while workers serve what is queued: Python 3.12 and later start no
    thread then. Nobody is left to take the default, either.
    """
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(fn()), name="torchgil-default-threads")
    try:
        thread.start()
    except RuntimeError as error:
        if "interpreter shutdown" not in str(error):
            raise
        return None
    thread.join()
    return results[0]


def switch_interval(seconds: float) -> Setting:
    """The interpreter's switch interval is this long inside the block.

    It is how long a thread that wants the GIL waits before it makes the holder give
    way: 5 ms by default. Shorter is the cheap mend for eager PyTorch beside a thread
    that is busy in Python; that thread then loses a little speed.

    The setting is the whole process's. Where blocks of several threads overlap,
    the one entered last counts, and the first value comes back when all have ended.
    As a decorator it is around each call of a function, each step of a generator or coroutine.

    Args:
        seconds: From 1e-6 (the interpreter's resolution) to 1000.

    Returns:
        A context manager, or a decorator.

    Raises:
        ValueError: seconds is out of range; nothing is changed.

    >>> import sys, torchgil
    >>> before = sys.getswitchinterval()
    >>> with torchgil.switch_interval(1e-4):
    ...     round(sys.getswitchinterval(), 6)
    0.0001
    >>> sys.getswitchinterval() == before
    True
    """
    wanted = "a number from 1e-6 to 1000"
    seconds = number("switch_interval: seconds", seconds, 1e-6, 1000, wanted=wanted, kind=ValueError)
    return Setting(functools.partial(_interval, seconds), f"torchgil.switch_interval({seconds:g})")


def _set_switch_interval(seconds: float) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    taken = sys.getswitchinterval()
    if abs(taken - seconds) > 1e-6:
        sys.setswitchinterval(before)
        raise RuntimeError(f"switch_interval: asked for {seconds} s, the interpreter took {taken} s")


_intervals = Blocks(sys.getswitchinterval, _set_switch_interval, lambda: _switch_interval_lock)


def _interval(seconds: float) -> _GeneratorContextManager[None]:
    return _intervals.block(seconds)


def usable_cores() -> int:
    """How many cores this process may use: its affinity, or its cgroup's quota if that is less.

    Returns:
        At least 1. A quota of 2.5 cores counts as 2.

    >>> import torchgil
    >>> torchgil.usable_cores() >= 1
    True
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return affinity if quota is None else max(1, min(affinity, math.floor(quota)))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores that the control groups of this process grant it, or None without a limit."""
    quotas = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: every level above may limit as well
            quotas += [_read_quota_v2(level) for level in _levels(root, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_read_quota_v1(level) for level in _levels(root / "cpu", path)]
    found = [quota for quota in quotas if quota is not None]
    return min(found, default=None)


def _levels(root: Path, path: str) -> list[Path]:
    relative = Path(path.lstrip("/"))
    return [root / relative, *(root / parent for parent in relative.parents)]


def _read_quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _read_quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
