"""For the child of test_first_use.py: each entry point as the first thing that a process does with torchgil.

The process that imports this module imports torch and what the entries need of it, but nothing of torchgil.
It forks for each pair of a neighbour and an entry, several at once. The fork sets the neighbour to work and
calls the entry beside it; whatever goes wrong, a hang among it, ends the fork with another exit code than 0.
"""

from __future__ import annotations

import _ctypes
import ctypes
import faulthandler
import functools
import gc
import glob
import importlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import torch

from tests.faults.entries import ENTRIES, LIMIT_S, prepare

AT_ONCE = 4  # processes


# --- the neighbours: what goes on meanwhile ----------------------------------------------------------


@contextmanager
def in_thread(step: Callable[[], object]) -> Iterator[None]:
    """A thread that calls step again and again, and has begun to."""
    begun = threading.Event()
    ended = False

    def run() -> None:
        while not ended:
            step()
            begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(LIMIT_S)
    yield
    ended = True
    thread.join()


@contextmanager
def loads(entry: str) -> Iterator[None]:
    libraries = [p for p in glob.glob("/usr/lib/*/lib*.so.*") if os.path.getsize(p) < 400_000][:60]
    position = iter(range(1 << 40))

    def step() -> None:
        with suppress(OSError):  # one that is not for us
            _ctypes.dlclose(ctypes.CDLL(libraries[next(position) % len(libraries)])._handle)

    with in_thread(step):
        yield


@contextmanager
def forks(entry: str) -> Iterator[None]:
    """Each child makes its own first use of the entry; there at least the modules are imported before."""
    import_all()  # a module that is half imported at a fork stays so in the child, in any program

    def step() -> None:
        if (pid := os.fork()) == 0:
            guarded(ENTRIES[entry])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a fork's child could not do it"

    with in_thread(step):
        yield


@contextmanager
def collections(entry: str) -> Iterator[None]:
    def step() -> None:
        node: list[object] = []
        node.append((node, torch.ones(1)))
        del node
        gc.collect()

    gc.freeze()  # not all that torch has
    with in_thread(step):
        yield


@contextmanager
def signals(entry: str) -> Iterator[None]:
    signal.signal(signal.SIGUSR1, lambda *_: torch.ones(1))

    def step() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.0005)

    with in_thread(step):
        yield


@contextmanager
def other_entries(entry: str) -> Iterator[None]:
    """One after the other, each for the first time, by another thread."""
    names = list(ENTRIES)
    at = names.index(entry)
    others = iter([*names[at + 1 :], *names[:at]])
    failed: list[BaseException] = []

    def step() -> None:
        name = next(others, None)
        try:
            if name and (name, entry) not in ONE_AT_A_TIME and (entry, name) not in ONE_AT_A_TIME:
                ENTRIES[name]()
        except BaseException as error:
            failed.append(error)
        time.sleep(0 if name else 0.001)

    running = threading.Thread(target=lambda: [step() for _ in range(3)])
    running.start()
    yield
    running.join()
    if failed:
        raise failed[0]


ONE_AT_A_TIME = {("trace", "audit"), ("trace", "trace"), ("audit", "audit")}  # the second is refused


@contextmanager
def loader_callback(entry: str) -> Iterator[None]:
    """Walks the loaded objects with a callback in Python, which wants the GIL under the loader's lock."""
    import_all()  # the interpreter's own import of an extension waits for that lock with the GIL held
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)(lambda *_: 0)
    libc = ctypes.CDLL(None)
    with in_thread(lambda: libc.dl_iterate_phdr(callback, None)):
        yield


@contextmanager
def sub_interpreter(entry: str) -> Iterator[None]:
    interpreters = importlib.import_module(
        "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    )
    interpreters.create()
    yield


# Those that decide themselves how the entry is called.


def in_a_finalizer(entry: str) -> None:
    """It is called amid the collection that found its object."""
    seen: list[BaseException | None] = []

    class Last:
        def __del__(self) -> None:
            try:
                ENTRIES[entry]()
                seen.append(None)
            except BaseException as error:
                seen.append(error)

    last = Last()
    last.itself = last  # type: ignore[attr-defined]
    del last
    gc.collect()
    if seen != [None]:
        raise seen[0] or AssertionError(seen)


def in_a_daemon_thread_at_exit(entry: str) -> None:
    begun = threading.Event()

    def run() -> None:
        begun.set()
        with suppress(Exception):  # that no thread can be started any more, and the like
            ENTRIES[entry]()

    threading.Thread(target=run, daemon=True).start()
    begun.wait()
    time.sleep(0.01 * random.randrange(8))
    sys.exit()


NEIGHBOURS: dict[str, Callable[[str], AbstractContextManager[None]]] = {
    neighbour.__name__: neighbour
    for neighbour in (loads, forks, collections, signals, other_entries, loader_callback, sub_interpreter)
}
CALLERS: dict[str, Callable[[str], None]] = {
    caller.__name__: caller for caller in (in_a_finalizer, in_a_daemon_thread_at_exit)
}


# --- one entry beside one neighbour ------------------------------------------------------------------


def import_all() -> None:
    import torchgil

    for name in torchgil.__all__:
        getattr(torchgil, name)


def limit() -> None:
    """From now on this process has so long, and says where it is if that is too short. In a fork, too."""
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(LIMIT_S)


def guarded(run: Callable[[], None]) -> None:
    """In a fork: runs it and ends the process."""
    limit()
    try:
        run()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def first_use(neighbour: str, entry: str) -> None:
    if neighbour in CALLERS:
        CALLERS[neighbour](entry)
        return
    with NEIGHBOURS[neighbour](entry):
        ENTRIES[entry]()


def main(times: int) -> None:
    """All pairs, some at once; prints those that fail."""
    prepare()
    assert "torchgil" not in sys.modules
    gc.collect()
    gc.freeze()
    pairs = [
        (neighbour, entry) for _ in range(times) for neighbour in (*NEIGHBOURS, *CALLERS) for entry in ENTRIES
    ]
    left = deque(pairs)
    again: list[tuple[str, str]] = []
    running: dict[int, tuple[str, str]] = {}
    failed: Counter[str] = Counter()

    def wait() -> None:
        pid, status = os.wait()
        pair, code = running.pop(pid), os.waitstatus_to_exitcode(status)
        if code == -signal.SIGABRT and pair[0] == "in_a_daemon_thread_at_exit" and pair not in again:
            # A thread of one's own within one of torch's ops can abort so, with torch alone: not twice.
            again.append(pair)
            left.append(pair)
        elif code:
            failed[f"{pair[1]} beside {pair[0]}: exit code {code}"] += 1

    while left or running:
        if not left or len(running) >= AT_ONCE:
            wait()
            continue
        pair = left.popleft()
        if pid := os.fork():
            running[pid] = pair
        elif pair[0] == "in_a_daemon_thread_at_exit":
            limit()
            random.seed()
            first_use(*pair)
        else:
            guarded(functools.partial(first_use, *pair))
    print(f"{len(pairs)} first uses")
    if failed:
        sys.exit(f"of {times} each: {dict(failed)}")
