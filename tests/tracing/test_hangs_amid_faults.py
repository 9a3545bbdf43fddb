"""A hang is told of where other things are not as they should be, too; and the telling harms nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Child, run_in_child
from tests.support.compiling import needs_compiler
from tests.tracing.hangs import child, told

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' signals, limits and /proc")


def compiled(folder: Path, source: str) -> str:
    """A library of C, to be loaded before all others."""
    (folder / "stub.c").write_text("#define _GNU_SOURCE\n" + source)
    library = folder / "stub.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", folder / "stub.c", "-o", library, "-ldl"], check=True)
    return str(library)


# Starts Python anew with a library that is loaded before libc, which the environment alone can ask for.
WITH_LIBRARY = """
import os, sys
if "LD_PRELOAD" not in os.environ:
    os.environ["LD_PRELOAD"] = {library!r}
    os.execv(sys.executable, [sys.executable, "-W", "error", "-c", {code!r}])
"""


def with_library(library: str, code: str) -> Child:
    return run_in_child(WITH_LIBRARY.format(library=library, code=code), timeout=60, fresh=True)


@linux
@needs_compiler
def test_without_threads_a_start_fails_and_leaves_none(tmp_path: Path) -> None:
    """With the GIL held, a start would wait for a knocker that needs it to end."""
    library = compiled(
        tmp_path,
        """
        #include <dlfcn.h>
        #include <errno.h>
        #include <pthread.h>
        int threads_left = -1;
        int pthread_create(pthread_t* t, const pthread_attr_t* a, void* (*f)(void*), void* x) {
          int (*next)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) =
              dlsym(RTLD_NEXT, "pthread_create");
          if (threads_left == 0) return EAGAIN;
          threads_left -= threads_left > 0;
          return next(t, a, f, x);
        }
        """,
    )
    with_library(
        library,
        """
import contextlib, ctypes, os, torchgil
left = ctypes.c_int.in_dll(ctypes.CDLL(None), "threads_left")
started = {}
for make in torchgil.Watchdog, torchgil.GilMonitor:
    for number in range(4):
        watching = make()
        left.value = number
        try:
            watching.start()
        except RuntimeError:
            pass
        else:
            started.setdefault(make.__name__, number)
        left.value = -1
        watching.stop()
        names = {"torchgil-"}
        while any(name.startswith("torchgil-") for name in names):  # or the child runs into its limit
            names = set()
            for task in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as name:
                    names.add(name.read())
assert started == {"Watchdog": 3, "GilMonitor": 1}, started
""",
    )


@linux
@needs_compiler
def test_without_memory_looks_are_left_out_and_the_process_goes_on(tmp_path: Path) -> None:
    library = compiled(
        tmp_path,
        """
        #include <stddef.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        extern void* __libc_malloc(size_t);
        int poor = 0, refused = 0; /* a thread's number, and how often it was told that there is no memory */
        void* malloc(size_t size) {
          static unsigned random = 1;
          /* Not the little that a thread's first exception takes: without it libc ends the process. */
          if (poor && size > 100 && syscall(SYS_gettid) == poor &&
              (random = random * 1103515245 + 12345) >> 16 & 1) {
            ++refused;
            return NULL;
          }
          return __libc_malloc(size);
        }
        """,
    )
    with_library(
        library,
        """
import ctypes, os, time, torchgil
poor, refused = (ctypes.c_int.in_dll(ctypes.CDLL(None), name) for name in ("poor", "refused"))
def thread_of(name):
    while True:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/comm") as file:
                if file.read().strip() == name:
                    return int(task)
null = os.open(os.devnull, os.O_WRONLY)
with torchgil.Watchdog(hang=0.1, on_hold=id, on_hang=id, hang_output=null) as dog, torchgil.GilMonitor(0.01):
    poor.value = thread_of("torchgil-look")
    for _ in range(5):
        ctypes.PyDLL(None).poll(None, 0, 300)
        time.sleep(0.02)
    assert refused.value
    poor.value = 0
    time.sleep(0.2)
    found = len(dog.hangs)
    ctypes.PyDLL(None).poll(None, 0, 300)
    time.sleep(0.02)
    assert len(dog.hangs) == found + 1
""",
    )


@linux
@needs_compiler
def test_where_the_system_does_not_list_threads_who_waits_is_said_to_be_unknown(tmp_path: Path) -> None:
    library = compiled(
        tmp_path,
        """
        #include <dirent.h>
        #include <dlfcn.h>
        #include <errno.h>
        #include <fcntl.h>
        #include <stdarg.h>
        #include <string.h>
        static int is_gone(const char* path) {
          errno = ENOENT;
          return strncmp(path, "/proc/self/task", 15) == 0;
        }
        #define OPEN(name) \\
          int name(const char* path, int flags, ...) { \\
            va_list rest; \\
            va_start(rest, flags); \\
            int mode = va_arg(rest, int); \\
            int (*next)(const char*, int, ...) = dlsym(RTLD_NEXT, #name); \\
            return is_gone(path) ? -1 : next(path, flags, mode); \\
          }
        OPEN(open)
        OPEN(open64)
        DIR* opendir(const char* path) {
          DIR* (*next)(const char*) = dlsym(RTLD_NEXT, "opendir");
          return is_gone(path) ? NULL : next(path);
        }
        """,
    )
    done = with_library(
        library,
        """
import ctypes, threading, time, torchgil
def wanting():
    while not stop.wait(0.001):
        pass
stop = threading.Event()
waiter = threading.Thread(target=wanting)
waiter.start()
with torchgil.Watchdog(hang=0.1, on_hold=id, on_hang=id) as watchdog:
    ctypes.PyDLL(None).poll(None, 0, 150)
    time.sleep(0.02)
stop.set()
waiter.join()
(hang,) = watchdog.hangs
print(hang.waiting_known, hang.waiting, hang.deadlocked, hang.function)
print(str(hang).rpartition("; ")[2])
""",
    )
    assert (
        "  it is not known to run or to sleep; whether other threads wait for the GIL is not known\n"
        in told(done)[0]
    )
    assert done.stdout.splitlines() == [
        "False () False <module>",
        "whether other threads waited for the GIL is not known",
    ]


def test_what_one_waits_for_a_stuck_reader_is_no_stop_of_the_process_to_another() -> None:
    done = child("""
        null = os.open(os.devnull, os.O_WRONLY)
        with watched(1.0, hang_output=full_pipe()), watched(0.4, hang_output=null) as other:
            held.sleep(3.5)  # it waits from 1 s to 3 s, and then after 4 s
        print(other.hangs[0].duration_s > 3, other.hangs[0].duration_s)
    """)
    assert done.stdout.startswith("True"), done


@linux
def test_a_broken_pipe_ends_no_process_that_has_sigpipe_as_it_was() -> None:
    child("""
        import signal
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for _ in range(5):
            reader, writer = os.pipe()
            os.close(reader)
            watchdog = watched(0.1, hang_output=writer)
            watchdog.start()
            held.sleep(0.3)
            watchdog.stop()  # tells that it has ended
            os.close(writer)
    """)


def test_a_file_that_the_program_has_closed_stays_its_own(tmp_path: Path) -> None:
    done = child(f"""
        def opened(descriptor):
            path = f"/proc/self/fd/{{descriptor}}"
            return os.path.exists(path) and os.readlink(path)
        watchdog = watched(0.1, hang_output={str(tmp_path / "hangs")!r})
        watchdog.start()
        (ours,) = (each for each in range(3, 100) if opened(each) == {str(tmp_path / "hangs")!r})
        os.close(ours)
        watchdog.stop()
        watchdog.start()
        os.close(ours)
        assert os.open({str(tmp_path / "mine")!r}, os.O_WRONLY | os.O_CREAT) == ours
        held.sleep(0.3)
        watchdog.stop()
        os.write(ours, b"mine")
    """)
    assert done.stderr == ""
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_fifo_that_nobody_reads_is_an_error_of_start(tmp_path: Path) -> None:
    child(f"""
        os.mkfifo({str(tmp_path / "fifo")!r})
        watchdog = watched(0.1, hang_output={str(tmp_path / "fifo")!r})
        try:
            watchdog.start()
        except OSError as error:
            assert "No such device" in str(error), error
        else:
            raise AssertionError
        assert not watchdog.running
        reader = os.open({str(tmp_path / "fifo")!r}, os.O_RDONLY | os.O_NONBLOCK)
        with watchdog:
            held.sleep(0.3)
        assert b"it sleeps in clock_nanosleep" in os.read(reader, 65536)
    """)


@linux
def test_libcs_own_lock_of_files_may_be_what_the_holder_has() -> None:
    """fflush(NULL) has it while a reader is stuck, and fopen() waits for it."""
    done = child(
        """
        reader, writer = os.pipe()
        libc, room = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 20)
        libc.fdopen.restype = ctypes.c_void_p
        file = ctypes.c_void_p(libc.fdopen(writer, b"w"))
        libc.setvbuf(file, room, 0, len(room))
        libc.fwrite(bytes(200_000), 1, 200_000, file)
        with watched(0.2, exit_after=0.5):
            holding.fflush(None)
        """,
        check=False,
    )
    assert done.exit_code == 70, done
    assert "  it sleeps in write; " in told(done)[0]


@linux
def test_a_stop_is_told_from_the_wait_for_a_core_of_the_thread_that_started_it() -> None:
    done = child("""
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        burners = [threading.Thread(target=torchgil.released.spin, args=(3,)) for _ in range(2)]
        for burner in burners:
            burner.start()
        torchgil.released.spin(3)
        for burner in burners:
            burner.join()
        queued = int(open("/proc/self/schedstat").read().split()[1]) / 1e9
        with watched(0.5) as watchdog:
            stop, go_on = f"kill -STOP {os.getpid()}", f"kill -CONT {os.getpid()}"
            subprocess.Popen(["sh", "-c", f"sleep 0.2; {stop}; sleep 0.5; {go_on}"])
            until_told(1.7)
            os.wait()
        (hang,) = watchdog.hangs
        print(queued > 1, 1.0 < hang.duration_s < 1.5, hang.duration_s)
    """)
    assert done.stdout.startswith("True True"), done
