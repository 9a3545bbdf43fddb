"""Calls are redirected and put back while other threads load and unload objects and bind symbols lazily."""

from __future__ import annotations

import os
import sys

import pytest

from ..conftest import run_in_child

ROUNDS = int(os.environ.get("TORCHGIL_STRESS_ROUNDS", "200"))

SOURCE = """
    import _ctypes, ctypes, os, shutil, sys, threading, time
    import torch, torchgil
    from torchgil._gil_half import C
    source = next((m.__file__ for m in map(__import__, ["_bz2", "_lzma", "_json", "zlib"])
                   if getattr(m, "__file__", None)), None)
    if source is None:
        sys.exit()  # this python has none that could be copied
"""

CODE = (
    SOURCE
    + """
    from tests.support.unchanged import unchanged
    rounds = int(sys.argv[1])
    folder, ended, counts = os.environ["TMPDIR"], threading.Event(), [0, 0]

    def loads(i):  # lazily: each call of the copy binds its symbol then
        path = shutil.copy(source, f"{folder}/copy{i}.so")
        while not ended.is_set():
            handle = _ctypes.dlopen(path, os.RTLD_LAZY | os.RTLD_LOCAL)
            ctypes.PyDLL(path, handle=handle)["PyInit_" + os.path.basename(source).split(".")[0]]()
            _ctypes.dlclose(handle)
            counts[0] += 1
        os.remove(path)

    def releases():
        while not ended.is_set():
            torchgil.released.sleep(0)
            time.sleep(0)
            counts[1] += 1

    def once():
        C.trace_start(1000, True, True)
        C.trace_stop()

    once()
    first = C.trace_start(1000, True, True)["slots"]
    C.trace_stop()
    # A sanitizer keeps what is freed for a while.
    with unchanged(grown_mib=None if "SANITIZE" in os.environ else 32):
        threads = [threading.Thread(target=loads, args=(i,)) for i in range(2)]
        threads.append(threading.Thread(target=releases))
        [thread.start() for thread in threads]
        for i in range(rounds):
            with torchgil.gil_priority():  # another client of the same tables
                once()
        ended.set()
        [thread.join() for thread in threads]
    assert C.trace_start(1000, True, True)["slots"] == first
    C.trace_stop()
    with torchgil.trace() as t:
        torchgil.released.spin(0.001)
    assert t.report().ops[0].verdict == "releases", t.report()
    assert min(counts) > rounds / 10, counts
    print(rounds, *counts)
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF objects")
def test_tables_are_redirected_and_put_back_amid_loading_unloading_and_binding():
    child = run_in_child(
        CODE, str(ROUNDS), timeout=60 + ROUNDS / 4
    )  # 50 ms a round, three times that on a loaded machine
    assert child.stderr == ""


# A copy of a library whose pages can be made to look as they do while the loader is at it.
COPY = (
    SOURCE
    + """
    import mmap, struct
    path = shutil.copy(source, os.environ["TMPDIR"] + "/copy.so")
    handle = _ctypes.dlopen(path, os.RTLD_NOW | os.RTLD_LOCAL)
    with open("/proc/self/maps") as maps:
        base = min(int(line.split("-")[0], 16) for line in maps if path in line)
    with open(path, "rb") as file:
        elf = file.read()
    (table,), (size, count) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<HH", elf, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", elf, table + i * size) for i in range(count)]
    (start, length), = [(h[3], h[6]) for h in headers if h[0] == 0x6474E552]  # PT_GNU_RELRO
    page = mmap.PAGESIZE
    begin, end = (base + start) // page * page, (base + start + length) // page * page
    (data, size), = [(base + h[3], h[5]) for h in headers if h[:2] == (1, 6)]  # PT_LOAD, to be written

    def protect(protection):
        mprotect = ctypes.CDLL(None).mprotect
        assert mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), protection) == 0
"""
)

UNFINISHED = (
    COPY
    + """
    def unseen():
        slots = C.trace_start(1000, True, True)["slots"]
        return slots, path in C.trace_stop()["missed_objects"]

    slots, missed = unseen()
    assert not missed and begin < end
    protect(mmap.PROT_READ | mmap.PROT_WRITE)  # as while the loader is at it
    fewer, missed = unseen()
    assert missed and fewer < slots, (fewer, slots)
    protect(mmap.PROT_READ)
    assert unseen() == (slots, False)
    before = ctypes.string_at(data, size)
    C.trace_start(1000, True, True)
    assert ctypes.string_at(data, size) != before
    protect(mmap.PROT_READ | mmap.PROT_WRITE)  # as another tool may
    assert path not in C.trace_stop()["missed_objects"]
    assert ctypes.string_at(data, size) == before
    _ctypes.dlclose(handle)
    os.remove(path)
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF objects")
def test_an_object_that_the_loader_is_still_at_is_left_alone():
    assert run_in_child(UNFINISHED).stderr == ""


LOOKED_AT_AGAIN = (
    COPY
    + """
    before = ctypes.string_at(data, size)

    def first_block_of_a_thread():
        def run():
            with torchgil.gil_priority():
                pass
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return ctypes.string_at(data, size) != before

    protect(mmap.PROT_READ | mmap.PROT_WRITE)  # as while the loader is at it
    assert not first_block_of_a_thread()
    protect(mmap.PROT_READ)
    assert first_block_of_a_thread()  # although nothing was loaded meanwhile
    os.remove(path)
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF objects")
def test_an_object_that_was_left_alone_is_looked_at_again():
    assert run_in_child(LOOKED_AT_AGAIN).stderr == ""
