"""Processes that have imported torch already: forked from one that did nothing else.

Half of a child's time is the import of torch. One process for each pytest process imports it, and nothing
more, and forks for each child. That runs the code as its main module and ends as every interpreter ends.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

SERVER = """
import json, os, socket, sys
import torch

def next_child():
    channel = socket.socket(fileno=int(sys.argv[1]))
    with channel, channel.makefile("r") as lines:
        while line := lines.readline():
            if (pid := os.fork()) == 0:
                return json.loads(line)
            channel.sendall(f"{pid}\\n".encode())
            channel.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\\n".encode())
    os._exit(0)

def become(request):
    for descriptor, path in enumerate(request["files"]):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = request["argv"]
    sys.path[:] = dict.fromkeys(["", *request["path"], *sys.path])
    return compile(request["code"], "<string>", "exec")

code = become(next_child())
for name in [n for n in globals() if n[:2] != "__" and n != "code"]:
    del globals()[name]
del name
exec(globals().pop("code"))
"""


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
    ) -> tuple[int | None, str, str]:
        """What subprocess.run gives: exit code, None where the time ran out, stdout and stderr."""
        with self._one_at_a_time, tempfile.TemporaryDirectory() as kept:
            if self._process is None:
                self._start(environment)
            out, err = Path(kept, "stdout"), Path(kept, "stderr")
            for path in (out, err):
                path.touch()
            request: dict[str, Any] = {
                "code": code,
                "argv": argv,
                "environment": environment,
                "path": [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p],
                "files": [os.devnull, str(out), str(err)],
                "folder": os.path.abspath(folder),
            }
            self._channel.settimeout(None)
            self._channel.sendall((json.dumps(request) + "\n").encode())
            pid = int(self._lines.readline())
            clock = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
            clock.start()
            try:
                ended: int | None = int(self._lines.readline())
            finally:
                in_time = clock.is_alive()
                clock.cancel()
            if ended == -signal.SIGKILL and not in_time:
                ended = None
            return ended, out.read_text(errors="replace"), err.read_text(errors="replace")


zygote = Zygote()
