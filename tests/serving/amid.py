"""For children: something happens at the n-th step of a call where Python may run a handler or a finalizer.

That is where a function begins and where one that is written in C has returned, and just there a profile
function is called. What it raises comes out there, as KeyboardInterrupt does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import sys
import threading
from concurrent.futures import CancelledError

import torch

import torchgil

ONE = torch.ones(1, 1)
REFUSALS = (torchgil.BatcherClosed, torchgil.QueueFull, TimeoutError)


class At:
    """Does `act` at the n-th step of one thread."""

    def __init__(self, n, act):
        self.n, self.act, self.seen, self.done = n, act, 0, False

    def __call__(self, frame, event, arg):
        # Not within the standard library's own locks: some of them are Python, and Ctrl-C leaves them taken.
        # Nor between a with statement's __enter__ and its block, where Ctrl-C can come from 3.14 on: any
        # lock is left taken: python/cpython#148874.
        if (
            event not in ("call", "c_return")
            or (event == "c_return" and getattr(arg, "__name__", "") == "__enter__")
            or self.done
            or frame.f_code.co_filename in (__file__, threading.__file__)
        ):
            return
        self.seen += 1
        if self.seen == self.n:
            self.done = True  # and not sys.setprofile(None), after which CPython 3.11 crashed in a worker
            self.act()

    def run(self, call):
        sys.setprofile(self)
        try:
            return call()
        finally:
            sys.setprofile(None)


def limited(seconds=20):
    """The child tells where it hangs, and ends."""
    faulthandler.dump_traceback_later(seconds, exit=True)


class Scene:
    """A batcher with one worker: idle, or in a call, with requests of others in the queue."""

    def __init__(self, busy, **options):
        limited()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.executor = torchgil.ThreadPool(1, intra_op_threads=1)
        self.executor.submit(int).result(10)  # its thread has begun
        self.options = options
        self.batcher = torchgil.Batcher(self.fn, max_delay=0, executor=self.executor, **options)
        self.others, self.of_pool = [], []
        if busy:
            self.others.append(self.batcher.submit(ONE))
            assert self.entered.wait(10)
            self.others += [self.batcher.submit(torch.ones(1, 2 + i)) for i in range(2)]
        else:
            self.gate.set()

    def fn(self, x):
        self.entered.set()
        assert self.gate.wait(15)
        return x + 1

    def check(self):
        """Nobody of the others waits for ever, and the batcher works on, or is closed and at its end."""
        self.gate.set()
        for future in self.others:
            with contextlib.suppress(CancelledError):
                error = future.exception(10)
                assert error is None or isinstance(error, REFUSALS), error
        with contextlib.suppress(torchgil.BatcherClosed):
            assert self.batcher.submit(ONE).result(10).item() == 2
        self.batcher.shutdown(timeout=10)
        stats = self.batcher.stats()
        assert (stats.queued, stats.queued_rows, stats.blocked, stats.running) == (0, 0, 0, 0), stats
        dispatcher = self.batcher._dispatcher
        assert (len(dispatcher._turns), dispatcher._collector) == (0, None)
        assert dispatcher._lock.acquire(timeout=5)
        dispatcher._lock.release()
        self.executor.shutdown()
        pool = self.executor.stats()
        assert (pool.queued, pool.running) == (0, 0), pool
        for future in self.of_pool:
            with contextlib.suppress(CancelledError):
                assert future.exception(10) is None or "after shutdown" in str(future.exception())
        faulthandler.cancel_dump_traceback_later()


def submit(scene):
    scene.others.append(scene.batcher.submit(ONE))


def submit_to_a_full_queue(scene):
    with contextlib.suppress(torchgil.QueueFull):
        scene.batcher.submit(torch.ones(1, 9), timeout=0.001)


def blocked(scene):
    """Somebody waits for room; then another request comes, and the worker goes on."""
    threading.Timer(0.002, scene.gate.set).start()
    scene.others.append(scene.batcher.submit(torch.ones(1, 9)))


def map_two(scene):
    scene.gate.set()
    list(scene.batcher.map([ONE, ONE]))


def cancel_and_look(scene):
    future = scene.batcher.submit(ONE)
    future.cancel()
    scene.batcher.stats()


def drain(scene):
    scene.gate.set()
    scene.batcher.shutdown()


def drop(scene):
    threading.Timer(0.002, scene.gate.set).start()
    scene.batcher.shutdown(drain=False)


def abandon(scene):
    scene.batcher.shutdown(timeout=0)


def own_executor(scene):
    with torchgil.Batcher(lambda x: x, max_delay=0) as batcher:
        scene.others.append(batcher.submit(ONE))


def of_the_pool(scene):
    scene.gate.set()
    scene.executor.submit(int).result(10)


def end_the_pool(scene):
    threading.Timer(0.002, scene.gate.set).start()
    scene.executor.shutdown(wait=False, cancel_futures=True)


CALLS = {
    "submit": (submit, {}),
    "full": (submit_to_a_full_queue, {"max_queue": 2}),
    "blocked": (blocked, {"max_queue": 2}),
    "map": (map_two, {}),
    "cancel": (cancel_and_look, {"max_queue": 2, "on_full": "raise"}),
    "drain": (drain, {}),
    "drop": (drop, {}),
    "abandon": (abandon, {}),
    "own executor": (own_executor, {}),
    "pool": (of_the_pool, {}),
    "pool's end": (end_the_pool, {}),
}


def interrupt(scene):
    raise KeyboardInterrupt


def ask(scene):
    with contextlib.suppress(*REFUSALS):
        scene.others.append(scene.batcher.submit(ONE, timeout=0.01))


def end(scene):
    scene.gate.set()
    scene.batcher.shutdown()


def end_at_once(scene):
    scene.gate.set()
    scene.batcher.shutdown(drain=False)


def cancel(scene):
    scene.batcher.stats()
    for future in scene.others:
        future.cancel()


def use_the_pool(scene):
    scene.executor.stats()
    scene.of_pool.append(scene.executor.submit(int))


def close_the_pool(scene):
    scene.gate.set()
    scene.executor.shutdown(wait=False)


ACTS = {
    "interrupt": interrupt,
    "ask": ask,
    "end": end,
    "end at once": end_at_once,
    "abandon": abandon,
    "cancel": cancel,
    "use the pool": use_the_pool,
    "close the pool": close_the_pool,
}


def once(name, busy, act, worker, n):
    """Makes a call, and does `act` at its n-th step here, or at the worker's; False: it had fewer."""
    call, options = CALLS[name]
    scene = None
    main = threading.get_ident()

    def do():
        with contextlib.suppress(Exception):  # as what a finalizer raises goes no further
            ACTS[act](scene)

    at = At(n, do)
    if worker:
        threading.setprofile(lambda *event: at(*event) if scene and threading.get_ident() != main else None)
    scene = Scene(busy, **options)
    try:
        call(scene) if worker else at.run(lambda: call(scene))
    except (KeyboardInterrupt, CancelledError, *REFUSALS):
        pass
    except RuntimeError as error:
        if "after shutdown" not in str(error):
            raise
    finally:
        threading.setprofile(None)
    scene.check()
    return at.done


def main(acts, where, stride, names):
    """Does one of `acts` after the other at each step of each call, or at every so many."""
    turn = itertools.cycle(acts.split(","))
    for name in CALLS if names == "all" else names.split(","):
        for busy in [True] if CALLS[name][1] else [False, True]:
            n = 1
            while once(name, busy, next(turn), where == "worker", n):
                n += int(stride)
            print(name, busy, n, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
