"""What the watchdog's tests load the process with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def busy_in_python(seconds: float) -> int:
    end, turns = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        turns += 1
    return turns


@contextmanager
def threads(n: int, fn: Callable[[], Any], name: str = "thread") -> Iterator[None]:
    started = [threading.Thread(target=fn, name=f"{name}-{i}") for i in range(n)]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        for thread in started:
            thread.join()
