"""Calls of known behaviour, each with the reason from the source of what it calls.

Read from CPython 3.11, numpy 2 and torch 2.13; the verdict is the same in the versions around them.
Each function prepares, and returns what is to be judged: 0.05 to 0.5 s of it, so that a hold is a long one.
"""

from __future__ import annotations

import atexit
import bz2
import contextlib
import ctypes
import gc
import hashlib
import io
import json
import lzma
import marshal
import math
import os
import pickle
import queue
import random
import re
import select
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchgil

Call = Callable[[], Any]

RELEASES, HOLDS = "releases", "holds"


@dataclass(frozen=True)
class Case:
    """One call: what it is, what it must be found to do, and why."""

    name: str
    verdict: str
    reason: str
    prepare: Callable[[], Call]
    slow: bool


CASES: list[Case] = []


def case(
    verdict: str, reason: str, *, slow: bool = False
) -> Callable[[Callable[[], Call]], Callable[[], Call]]:
    def add(prepare: Callable[[], Call]) -> Callable[[], Call]:
        CASES.append(Case(prepare.__name__, verdict, reason, prepare, slow))
        return prepare

    return add


_until_exit = contextlib.ExitStack()  # files and the like that a call needs
atexit.register(_until_exit.close)


def _text(n: int) -> bytes:
    return b"".join(b"%d squared is %d\n" % (i, i * i) for i in range(n // 24))[:n]


def _later(seconds: float, do: Callable[[], Any]) -> None:
    threading.Timer(seconds, do).start()


# --- the standard library: what releases ----------------------------------------------------------


@case(RELEASES, "zlib_compress_impl: Py_BEGIN_ALLOW_THREADS around deflate()")
def zlib_compress() -> Call:
    data = _text(4_000_000)
    return lambda: zlib.compress(data)


@case(RELEASES, "zlib_decompress_impl: Py_BEGIN_ALLOW_THREADS around inflate()")
def zlib_decompress() -> Call:
    data = zlib.compress(_text(20_000_000), 1)
    return lambda: zlib.decompress(data, bufsize=20_000_000)


@case(RELEASES, "zlib_crc32: released for more than 5 KiB")
def zlib_crc32() -> Call:
    data = bytes(150_000_000)
    return lambda: zlib.crc32(data)


@case(RELEASES, "EVP_hash: released from HASHLIB_GIL_MINSIZE (2048 bytes) on")
def sha256_large() -> Call:
    data = bytes(60_000_000)
    return lambda: hashlib.sha256(data)


@case(HOLDS, "below HASHLIB_GIL_MINSIZE the hash keeps the GIL; the loop is Python")
def sha256_tiny() -> Call:
    data = bytes(100)

    def run() -> None:
        for _ in range(150_000):
            hashlib.sha256(data)

    return run


@case(RELEASES, "pbkdf2_hmac_impl: Py_BEGIN_ALLOW_THREADS around PKCS5_PBKDF2_HMAC")
def pbkdf2() -> Call:
    return lambda: hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 150_000)


@case(RELEASES, "pysleep: Py_BEGIN_ALLOW_THREADS around clock_nanosleep")
def time_sleep() -> Call:
    return lambda: time.sleep(0.1)


@case(RELEASES, "_lzmamodule.c, compress(): Py_BEGIN_ALLOW_THREADS around lzma_code")
def lzma_compress() -> Call:
    data = _text(2_000_000)  # its memory is made with the GIL held, some milliseconds
    return lambda: lzma.compress(data, preset=3)


@case(RELEASES, "_bz2module.c, compress(): Py_BEGIN_ALLOW_THREADS around BZ2_bzCompress")
def bz2_compress() -> Call:
    data = _text(1_500_000)
    return lambda: bz2.compress(data)


@case(RELEASES, "_Py_read: Py_BEGIN_ALLOW_THREADS around read()")
def file_read() -> Call:
    buffer = bytearray(200_000_000)
    file = _until_exit.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - at exit
    file.write(buffer)

    def run() -> int:
        file.seek(0)
        return file.readinto(buffer) or 0

    return run


@case(RELEASES, "_Py_write: Py_BEGIN_ALLOW_THREADS around write()")
def file_write() -> Call:
    data = bytes(100_000_000)
    file = _until_exit.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - at exit
    return lambda: file.write(data)


@case(RELEASES, "_Py_read again: a pipe in which nothing is yet")
def pipe_read() -> Call:
    reading, writing = os.pipe()

    def run() -> bytes:
        _later(0.1, lambda: os.write(writing, b"x"))
        return os.read(reading, 1)

    return run


@case(RELEASES, "sock_call_impl: Py_BEGIN_ALLOW_THREADS around poll() and recv()")
def socket_recv() -> Call:
    a, b = map(_until_exit.enter_context, socket.socketpair())

    def run() -> bytes:
        _later(0.4, lambda: b.send(b"x"))  # to start a thread can take 10 ms
        return a.recv(1)

    return run


@case(RELEASES, "acquire_timed: first without waiting, then Py_BEGIN_ALLOW_THREADS around the wait")
def lock_acquire() -> Call:
    lock = threading.Lock()
    lock.acquire()
    return lambda: lock.acquire(timeout=0.1)


@case(RELEASES, "Condition.wait: a lock of its own, acquired with a timeout")
def event_wait() -> Call:
    return lambda: threading.Event().wait(0.1)


@case(RELEASES, "_queuemodule.c: the wait for the semaphore is released")
def simple_queue_get() -> Call:
    q: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run() -> None:
        with contextlib.suppress(queue.Empty):
            q.get(timeout=0.1)

    return run


@case(RELEASES, "select_select_impl: Py_BEGIN_ALLOW_THREADS around select()")
def select_wait() -> Call:
    return lambda: select.select([], [], [], 0.1)


@case(RELEASES, "os_waitpid_impl: Py_BEGIN_ALLOW_THREADS around waitpid()")
def subprocess_wait() -> Call:
    def run() -> int:
        return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(0.3)"]).wait()

    return run


@case(RELEASES, "_pysqlite_query_execute: Py_BEGIN_ALLOW_THREADS around sqlite3_step")
def sqlite_query() -> Call:
    connection = _until_exit.enter_context(contextlib.closing(sqlite3.connect(":memory:")))
    count = "select 1 union all select i + 1 from n where i < 600000"
    query = f"with recursive n(i) as ({count}) select sum(i) from n"
    return lambda: connection.execute(query).fetchone()


@case(RELEASES, "ctypes: Py_UNBLOCK_THREADS before a function of a CDLL")
def ctypes_cdll() -> Call:
    usleep = ctypes.CDLL(None).usleep
    return lambda: usleep(100_000)


@case(HOLDS, "ctypes: FUNCFLAG_PYTHONAPI, as PyDLL sets it, keeps the GIL")
def ctypes_pydll() -> Call:
    usleep = ctypes.PyDLL(None).usleep
    return lambda: usleep(100_000)


# --- the standard library: what holds -------------------------------------------------------------


@case(HOLDS, "_json.c makes Python objects all the way")
def json_loads() -> Call:
    text = json.dumps([{"id": i, "name": str(i), "x": [i, i + 0.5]} for i in range(70_000)])
    return lambda: json.loads(text)


@case(HOLDS, "_json.c reads Python objects all the way")
def json_dumps() -> Call:
    data = [{"id": i, "name": str(i), "x": [i, i + 0.5]} for i in range(70_000)]
    return lambda: json.dumps(data)


@case(HOLDS, "_pickle.c makes Python objects all the way")
def pickle_loads() -> Call:
    data = pickle.dumps([(i, str(i), float(i)) for i in range(200_000)])
    return lambda: pickle.loads(data)


@case(HOLDS, "_pickle.c reads Python objects all the way")
def pickle_dumps() -> Call:
    data = [(i, str(i), float(i)) for i in range(200_000)]
    return lambda: pickle.dumps(data)


@case(HOLDS, "marshal.c makes Python objects all the way")
def marshal_loads() -> Call:
    data = marshal.dumps([(i, str(i), float(i)) for i in range(300_000)])
    return lambda: marshal.loads(data)


@case(HOLDS, "_sre.c never releases, however long it backtracks")
def re_backtracking() -> Call:
    pattern = re.compile(r"(a+)+$")
    return lambda: pattern.match("a" * 21 + "b")


@case(HOLDS, "listobject.c: it compares Python objects")
def list_sort() -> Call:
    numbers = [random.random() for _ in range(400_000)]
    return lambda: sorted(numbers)


@case(HOLDS, "longobject.c never releases")
def big_int_power() -> Call:
    return lambda: 7**400_000


@case(HOLDS, "bltinmodule.c: one call, no bytecode, no eval breaker")
def sum_range() -> Call:
    return lambda: sum(range(6_000_000))


@case(HOLDS, "mathmodule.c multiplies Python integers")
def factorial() -> Call:
    return lambda: math.factorial(60_000)


@case(HOLDS, "bytesobject.c never releases")
def bytes_count() -> Call:
    data = b"ab" * 40_000_000
    return lambda: data.count(b"ba")


@case(HOLDS, "unicodeobject.c never releases")
def utf8_decode() -> Call:
    data = "\u00e9\u4e2d".encode() * 12_000_000
    return lambda: data.decode()


@case(HOLDS, "the compiler never releases")
def compile_source() -> Call:
    source = "\n".join(f"x{i} = [{i}, {i} + 1, f({i})]" for i in range(10_000))
    return lambda: compile(source, "<source>", "exec")


@case(HOLDS, "gcmodule.c walks Python objects")
def gc_collect() -> Call:
    keep = [[i] for i in range(1_000_000)]
    return lambda: (gc.collect(), len(keep))


@case(HOLDS, "bytecode gives way at the switch interval only if somebody asks: that is no release")
def python_loop() -> Call:
    def run() -> int:
        n = 0
        for i in range(2_000_000):
            n += i
        return n

    return run


# --- numpy ----------------------------------------------------------------------------------------


@case(RELEASES, "_new_sortlike: NPY_BEGIN_THREADS_DESCR for types without Python objects")
def numpy_sort() -> Call:
    x = np.random.default_rng(0).random(2_000_000)
    return lambda: np.sort(x)


@case(RELEASES, "cblas_matrixproduct: NPY_BEGIN_ALLOW_THREADS around gemm")
def numpy_dot() -> Call:
    x = np.random.default_rng(0).random((1200, 1200))
    return lambda: np.dot(x, x)


@case(RELEASES, "ufunc loops: NPY_BEGIN_THREADS unless the loop needs the Python API")
def numpy_exp() -> Call:
    x = np.random.default_rng(0).random(10_000_000)
    return lambda: np.exp(x, out=x)


@case(RELEASES, "umath_linalg is a ufunc")
def numpy_svd() -> Call:
    x = np.random.default_rng(0).random((300, 300))
    return lambda: np.linalg.svd(x)


@case(RELEASES, "_generator.pyx: the fill runs `with nogil`")
def numpy_random() -> Call:
    rng = np.random.default_rng(0)
    out = np.empty(8_000_000)
    return lambda: rng.standard_normal(out=out)


@case(HOLDS, "NPY_METH_REQUIRES_PYAPI: adding Python objects")
def numpy_object_sum() -> Call:
    x = np.array([random.random() for _ in range(2_000_000)], dtype=object)
    return lambda: x.sum()


@case(HOLDS, "array_tolist makes Python objects")
def numpy_tolist() -> Call:
    x = np.random.default_rng(0).random(4_000_000)
    return lambda: x.tolist()


@case(HOLDS, "PyArray_Pack per element, from Python objects")
def numpy_array_of_list() -> Call:
    numbers = [float(i) for i in range(3_000_000)]
    return lambda: np.array(numbers)


# --- torch ----------------------------------------------------------------------------------------


def _square(n: int) -> torch.Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(0))


@case(RELEASES, "python_torch_functions.cpp: pybind11::gil_scoped_release in the dispatch lambda")
def torch_mm() -> Call:
    x = _square(1500)
    return lambda: torch.mm(x, x)


@case(RELEASES, "the same generated binding")
def torch_sort() -> Call:
    x = _square(1200)
    return lambda: torch.sort(x)


@case(RELEASES, "torch/csrc/jit/python: invokeOperatorFromPython releases around the boxed call")
def torch_ops_mm() -> Call:
    x = _square(1500)
    return lambda: torch.ops.aten.mm.default(x, x)


@case(RELEASES, "the module's ops, each by its own binding")
def conv2d() -> Call:
    module = torch.nn.Conv2d(32, 64, 3)
    x = torch.randn(4, 32, 160, 160)
    return lambda: module(x)


@case(HOLDS, "tensor_list.cpp, recursive_to_list: Python objects all the way")
def torch_tolist() -> Call:
    x = torch.randn(3_000_000)
    return lambda: x.tolist()


@case(HOLDS, "tensor_new.cpp, recursive_store: Python objects all the way")
def torch_tensor_of_list() -> Call:
    numbers = [float(i) for i in range(1_500_000)]
    return lambda: torch.tensor(numbers)


@case(RELEASES, "tensor_new.cpp: from_numpy shares, and the copy (.to) runs released")
def torch_tensor_of_array() -> Call:
    x = np.zeros(40_000_000)
    return lambda: torch.tensor(x)


@case(RELEASES, "the zip reader reads a file in C++, released")
def torch_load_path() -> Call:
    path = Path(_until_exit.enter_context(tempfile.TemporaryDirectory())) / "x.pt"
    torch.save(torch.zeros(40_000_000), path)
    return lambda: torch.load(path)


@case(HOLDS, "the zip reader calls the Python file's read() and copies from its bytes, under the GIL")
def torch_load_bytes() -> Call:
    file = io.BytesIO()
    torch.save(torch.zeros(40_000_000), file)
    data = file.getvalue()
    return lambda: torch.load(io.BytesIO(data))


@case(RELEASES, "python_engine.cpp: pybind11::gil_scoped_release around the whole backward pass")
def backward() -> Call:
    x = _square(1000).requires_grad_()
    loss = (x @ x).relu().sum()
    return lambda: loss.backward(retain_graph=True)


@torch.library.custom_op("torchgil_tests::python_op", mutates_args=())
def _python_op(x: torch.Tensor) -> torch.Tensor:
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    return x.clone()


@case(HOLDS, "registered in Python: the dispatcher takes the GIL back for its body")
def op_registered_in_python() -> Call:
    x = torch.ones(4)
    torch.ops.torchgil_tests.python_op(x)  # the first call imports much
    return lambda: torch.ops.torchgil_tests.python_op(x)


@case(RELEASES, "the interpreter of a script function runs released (deprecated: torch says so)")
def torch_script() -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Twice(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.mm(torch.mm(x, x), x)

        module = torch.jit.trace(Twice(), _square(64))
    x = _square(900)
    module(x)
    return lambda: module(x)


@case(HOLDS, "the policy `held`")
def held_spin() -> Call:
    return lambda: torchgil.held.spin(0.1)


@case(HOLDS, "the policy `held`")
def held_matmul() -> Call:
    x = _square(1500)
    return lambda: torchgil.held.matmul(x, x)


@case(HOLDS, "the policy `held`, blocked rather than busy")
def held_sleep() -> Call:
    return lambda: torchgil.held.sleep(0.1)


@case(RELEASES, "the policy `released`")
def released_spin() -> Call:
    return lambda: torchgil.released.spin(0.1)


@case(RELEASES, "the policy `released`")
def released_matmul() -> Call:
    x = _square(1500)
    return lambda: torchgil.released.matmul(x, x)


@case(RELEASES, "the policy `released`, blocked rather than busy")
def released_sleep() -> Call:
    return lambda: torchgil.released.sleep(0.1)


@case(RELEASES, "the dispatcher's own path releases")
def ops_spin() -> Call:
    return lambda: torch.ops.torchgil.spin(0.1)


@case(RELEASES, "the dispatcher's own path releases")
def ops_matmul() -> Call:
    x = _square(1500)
    return lambda: torch.ops.torchgil.matmul(x, x)


# --- compiled -------------------------------------------------------------------------------------


def _exp_chain(x: torch.Tensor) -> torch.Tensor:
    for _ in range(8):
        x = torch.exp(torch.sin(x))  # one fused kernel
    return x


def _compiled(cpp_wrapper: bool) -> Call:
    torch._dynamo.reset()
    x = _square(2500)
    compiled = torch.compile(_exp_chain, options={"cpp_wrapper": cpp_wrapper})
    compiled(x)
    compiled(x)
    return lambda: compiled(x)


@case(HOLDS, "inductor's binding of a fused kernel keeps the GIL: pytorch#163061", slow=True)
def torch_compile() -> Call:
    return _compiled(cpp_wrapper=False)


@case(RELEASES, "the C++ wrapper's entry releases for the whole graph", slow=True)
def torch_compile_cpp_wrapper() -> Call:
    return _compiled(cpp_wrapper=True)


@case(HOLDS, "AOTIModelPackageLoader's binding has no call_guard: pytorch#197516", slow=True)
def aot_inductor() -> Call:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _exp_chain(x)

    x = _square(2500)
    path = Path(_until_exit.enter_context(tempfile.TemporaryDirectory())) / "model.pt2"
    torch._inductor.aoti_compile_and_package(torch.export.export(Model(), (x,)), package_path=str(path))
    model = torch._inductor.aoti_load_package(str(path))
    model(x)
    return lambda: model(x)
