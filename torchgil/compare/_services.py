"""A contender made ready: the model, its workers, and one way to ask them."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import pickle
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from torchgil.compare._contenders import Contender
from torchgil.compare._subject import Subject, load
from torchgil.serving import Batcher, ThreadPool

__all__ = ["Serving", "moved_bytes", "start"]


@dataclass(frozen=True)
class Serving:
    """A contender ready to serve: one request at a time in the calling thread, by futures, or awaited."""

    submit: Callable[[], Future[Any]] | None
    close: Callable[[], None]
    answer: Callable[[], Any] | None = None
    ask: Callable[[], Awaitable[Any]] | None = None
    max_batch_size: int = 0  # rows; 0: no batches


def start(contender: Contender, factory: str, in_flight: int) -> Serving:
    """Build the model and the workers, and answer a request in each worker.

    Args:
        contender: Which.
        factory: `MODULE:FACTORY`.
        in_flight: How many requests will be asked for at a time; batches share them out to the workers.
    """
    if contender.kind in ("processes", "shared"):
        return _start_processes(contender, factory)
    subject = load(factory)
    if contender.kind == "single":
        return _start_single(contender, subject)
    pool = ThreadPool(
        contender.workers, intra_op_threads=contender.intra_op_threads, inference_mode=not contender.nogil
    )
    if contender.batching:
        return _start_batcher(contender, subject, pool, max(1, in_flight // contender.workers))
    target = _nogil(subject) if contender.nogil else subject.target
    args, kwargs = subject.request
    together = threading.Barrier(contender.workers)
    _answer_in_each(pool, contender.workers, lambda: _meet(together, lambda: target(*args, **kwargs)))
    if contender.asyncio:
        return Serving(None, pool.shutdown, ask=lambda: pool.run(target, *args, **kwargs))
    return Serving(lambda: pool.submit(target, *args, **kwargs), pool.shutdown)


def _start_single(contender: Contender, subject: Subject) -> Serving:
    torch.set_num_threads(contender.intra_op_threads)

    def answer() -> Any:
        with torch.inference_mode():
            return subject.call()

    answer()
    return Serving(None, lambda: None, answer=answer)


def _answer_in_each(pool: Executor, workers: int, answer: Callable[[], Any]) -> None:
    errors = [future.exception() for future in [pool.submit(answer) for _ in range(workers)]]
    for error in sorted(filter(None, errors), key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error  # the cause, before those that waited for it in vain


def _meet(together: Any, answer: Callable[[], Any]) -> None:
    """Answer, and wait until as many have as there are workers: so no worker gives two answers."""
    try:
        answer()
    except BaseException:
        together.abort()  # nobody may wait for this one
        raise
    together.wait()


def _nogil(subject: Subject, *, any_rows: bool = False) -> Callable[..., Any]:
    if not isinstance(subject.target, torch.nn.Module):
        raise TypeError(
            f"torchgil.nogil takes an nn.Module, the factory made a {type(subject.target).__name__}"
        )
    nogil = importlib.import_module("torchgil.forward._nogil").nogil
    compiled: Callable[..., Any]
    if not any_rows:
        compiled = nogil(subject.target, subject.args, subject.kwargs)
        return compiled
    if subject.kwargs:
        raise TypeError("batches of any size need a model called with positional arguments alone")
    # Two rows as the example: a size of one would be taken for a constant.
    two = tree_map(
        lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) else leaf, subject.args
    )
    rows = torch.export.Dim("rows", max=4096)
    shapes = tree_map(lambda leaf: {0: rows} if isinstance(leaf, torch.Tensor) else None, subject.args)
    compiled = nogil(subject.target, two, dynamic_shapes=shapes)
    return compiled


def _another(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf * 2 + 1 if leaf.is_floating_point() else leaf.flip(-1)  # indices must stay in range


def _start_batcher(contender: Contender, subject: Subject, pool: ThreadPool, requests: int) -> Serving:
    target = _nogil(subject, any_rows=True) if contender.nogil else subject.target

    def call(request: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        args, kwargs = request
        return target(*args, **kwargs)

    # A larger batch would take all that is in flight, and leave the other workers nothing.
    tensors = (leaf for leaf in tree_leaves(subject.request) if isinstance(leaf, torch.Tensor) and leaf.dim())
    rows = max(1, next((len(leaf) for leaf in tensors), 1))
    most = rows * requests
    batcher = Batcher(call, executor=pool, concurrency=contender.workers, max_batch_size=most)

    def close() -> None:
        batcher.shutdown()
        pool.shutdown()

    try:
        # A model whose rows depend on each other must not be batched: beside another request, and alone.
        with torch.inference_mode():
            alone = subject.call()
        # It waits until both are there, however slow the machine is.
        with Batcher(call, executor=pool, max_batch_size=2 * rows, max_delay=60) as both:
            answer, _ = both.map([subject.request, tree_map(_another, subject.request)])
        torch.testing.assert_close(answer, alone, rtol=1e-3, atol=1e-3)
    except BaseException:
        close()
        raise
    return Serving(lambda: batcher.submit(subject.request), close, max_batch_size=most)


# In a worker process: its own subject, or the one it was handed; and where the first answers wait.
_subject: Subject | None = None
_together: Any = None


def _start_worker(factory: str, intra_op_threads: int, handed: Subject | None, together: Any) -> None:
    global _subject, _together
    torch.set_num_threads(intra_op_threads)
    _subject = load(factory) if handed is None else handed
    _together = together


def _answer_first() -> None:
    assert _subject is not None
    with torch.inference_mode():
        _meet(_together, _subject.call)


def _answer_in_worker(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    assert _subject is not None
    with torch.inference_mode():
        return _subject.target(*args, **kwargs)


def _start_processes(contender: Contender, factory: str) -> Serving:
    subject = load(factory)
    handed = None
    if contender.kind == "shared":
        if not isinstance(subject.target, torch.nn.Module):
            raise TypeError(
                f"weights can be shared of an nn.Module, not of a {type(subject.target).__name__}"
            )
        subject.target.share_memory()
        _check_pickles(subject.target)
        handed = subject
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(contender.workers)
    pool = ProcessPoolExecutor(
        contender.workers,
        spawn,
        initializer=_start_worker,
        initargs=(factory, contender.intra_op_threads, handed, together),
    )
    try:
        _answer_in_each(pool, contender.workers, _answer_first)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise

    def submit() -> Future[Any]:
        # Fresh tensors, as requests have: one that was sent before lies in shared memory already.
        args, kwargs = tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, request
        )
        return pool.submit(_answer_in_worker, args, kwargs)

    request = subject.request
    return Serving(submit, pool.shutdown)


class _WithoutTensors(pickle.Pickler):
    """What of an object is to be pickled beside its tensors, which torch moves."""

    def persistent_id(self, obj: Any) -> str | None:
        return "tensor" if isinstance(obj, torch.Tensor) else None


def _check_pickles(target: torch.nn.Module) -> None:
    # Each Python words it in its own way, and says it from deep inside the start of a process.
    try:
        _WithoutTensors(io.BytesIO()).dump(target)
    except Exception as error:
        name = type(target).__name__
        raise TypeError(
            f"a {name} cannot be pickled, and so not be handed to another process: {error}"
        ) from error


def moved_bytes(factory: str) -> tuple[int, int]:
    """Bytes pickled per request and result, and bytes that torch moves beside them in shared memory."""
    subject = load(factory)
    with torch.inference_mode():
        result = subject.call()
    # A view takes its whole storage along; each storage goes once.
    tensors = [leaf for leaf in tree_leaves((subject.request, result)) if isinstance(leaf, torch.Tensor)]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    shared = sum(storages.values())
    pickled = sum(len(ForkingPickler.dumps(part)) for part in ((_answer_in_worker, subject.request), result))
    return pickled, shared
