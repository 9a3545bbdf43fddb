"""Processes that have imported torch already: forked from one that did nothing else.

Half of a child's time is the import of torch. One process for each pytest process imports it, and nothing
more, and forks for each child. That runs the code as its main module and ends as every interpreter ends, or
begins anew as an interpreter that has imported nothing. Only the destructors of torch's libraries, which run
after the interpreter's end, are left out where no test is about them.

What a child leaves is seen from there: its orphans go to the process that forked it, and its temporary files
lie in a folder of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = """
import ctypes, faulthandler, gc, json, os, signal, socket, sys, tempfile, time
import torch

# A child's collector leaves torch's own objects alone: to look through them, and so to copy their memory, was
# more than half of its end.
gc.collect()
gc.freeze()

def left(grace_s=5):
    # Processes that the child never waited for, and such as live on and do not end by themselves.
    found, end = [], time.monotonic() + grace_s
    try:
        while (zombie := os.waitpid(-1, os.WNOHANG)[0]) or time.monotonic() < end:
            if zombie and end - time.monotonic() > grace_s - 0.005:
                found.append(f"a zombie, process {zombie}")
            time.sleep(0.01 * (not zombie))
        for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split():
            command = open(f"/proc/{pid}/cmdline").read().replace("\\0", " ")
            found.append(f"a running process {pid}: {command[:200]}")
            os.kill(int(pid), signal.SIGKILL)
            os.waitpid(int(pid), 0)
    except ChildProcessError:
        pass
    return found

def next_child():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    channel = socket.socket(fileno=int(sys.argv[1]))
    with channel, channel.makefile("r") as lines:
        while line := lines.readline():
            if (pid := os.fork()) == 0:
                return json.loads(line)
            channel.sendall(f"{pid}\\n".encode())
            ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            channel.sendall(f"{json.dumps([ended, left()])}\\n".encode())
    os._exit(0)

def become(request):
    for descriptor, path in enumerate(request["files"]):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(request["folder"])
    if request["fresh"]:
        command = [sys.executable, "-c", request["code"], *request["argv"][1:]]
        os.execve(sys.executable, command, request["environment"])
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit") and not request["whole_end"]:  # glibc has it
        # The process ends once the interpreter has ended and what was loaded after torch has run its
        # destructors: those of torch's libraries were half of the time of a short child.
        libc.on_exit(libc._exit, None)
    faulthandler.register(signal.SIGUSR1)  # how it is asked where it hangs
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.argv[:] = request["argv"]
    here = [] if getattr(sys.flags, "safe_path", False) else [""]
    sys.path[:] = dict.fromkeys([*here, *request["path"], *sys.path])
    return compile(request["code"], "<string>", "exec")

code = become(next_child())
for name in [n for n in globals() if n[:2] != "__" and n != "code"]:
    del globals()[name]
del name
exec(globals().pop("code"))
"""


@dataclass(frozen=True)
class Child:
    """What is left of a finished child process."""

    exit_code: int | None  # None: it ran into its time limit and was killed
    stdout: str
    stderr: str
    left: tuple[str, ...]  # zombies, processes and temporary files; a killed child's count for nothing

    def __str__(self) -> str:
        how = "ran into its time limit" if self.exit_code is None else f"exit code {self.exit_code}"
        left = "".join(f"\n--- left {what}" for what in self.left)
        return f"{how}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}{left}"


class Zygote:
    """The process that forks; started by the first child."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def _start(self, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._channel, self._lines = ours, ours.makefile("r")
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            # numpy's and torch's own threads would not live through the fork.
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        atexit.register(self._stop)

    def _stop(self) -> None:
        self._channel.shutdown(socket.SHUT_RDWR)

    def run(
        self,
        code: str,
        argv: list[str],
        environment: dict[str, str],
        timeout: float,
        folder: str | Path = ".",
        fresh: bool = False,
        whole_end: bool = False,
    ) -> Child:
        """Runs code as `python -c` does, in a process that has imported torch, or, fresh, nothing.

        With whole_end, and in a fresh one, the destructors of torch's libraries run as the process ends.
        """
        with self._one_at_a_time, tempfile.TemporaryDirectory() as kept:
            if self._process is None:
                self._start(environment)
            out, err, own = (Path(kept, name) for name in ("stdout", "stderr", "temporary"))
            for path in (out, err):
                path.touch()
            own.mkdir()
            request: dict[str, Any] = {
                "code": code,
                "argv": argv,
                "environment": {**_compiled_before(), **environment, "TMPDIR": str(own)},
                "path": [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p],
                "files": [os.devnull, str(out), str(err)],
                "folder": os.path.abspath(folder),
                "fresh": fresh,
                "whole_end": whole_end or "TORCHGIL_WHOLE_END" in environment,
            }
            self._channel.settimeout(None)
            self._channel.sendall((json.dumps(request) + "\n").encode())
            pid = int(self._lines.readline())
            late = threading.Event()
            clock = threading.Timer(timeout, _kill, (pid, late, fresh))
            clock.start()
            try:
                ended, left = json.loads(self._lines.readline())
            finally:
                clock.cancel()
                clock.join()
            if ended == -signal.SIGKILL and late.is_set():
                ended = None
            left += [f"a temporary file {path.relative_to(own)}" for path in sorted(own.iterdir())]
            if ended is None or (ended < 0 and ended != -signal.SIGINT):
                left = []
            text = [path.read_text(errors="replace") for path in (out, err)]
            return Child(ended, *text, tuple(left))


def _kill(pid: int, late: threading.Event, fresh: bool) -> None:
    """Ends a child that is late, once it has said on stderr where its threads are; a fresh one cannot."""
    late.set()
    with contextlib.suppress(ProcessLookupError):
        if not fresh:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)


def _compiled_before() -> dict[str, str]:
    """Where Inductor keeps what it compiled: for all children, as it would without a folder of their own."""
    folder = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder)}


zygote = Zygote()
