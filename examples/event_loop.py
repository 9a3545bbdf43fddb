"""How late an event loop is beside a thread that is busy in Python, and what gil_priority() makes of it.

python examples/event_loop.py

A task sleeps for a millisecond and looks how late it comes back, as a websocket's keepalive would. Each time
it has to take the GIL from the busy thread, which gives it up 5 ms after it was asked.
"""

from __future__ import annotations

import asyncio
import threading
import time

import torchgil

SLEEP_S = 0.001
TIMES = 200

stop = threading.Event()


def busy() -> None:
    """A thread that parses, tokenises, counts."""
    while not stop.is_set():
        sum(range(1000))


async def lateness() -> list[float]:
    """How late the loop comes back from each of many short sleeps, in seconds, sorted."""
    late = []
    for _ in range(TIMES):
        began = time.perf_counter()
        await asyncio.sleep(SLEEP_S)
        late.append(time.perf_counter() - began - SLEEP_S)
    return sorted(late)


def show(title: str, late: list[float]) -> None:
    p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    print(f"{title:36} p50 {p50 * 1e3:6.2f} ms   p99 {p99 * 1e3:6.2f} ms")


async def main() -> None:
    show("alone", await lateness())
    other = threading.Thread(target=busy)
    other.start()
    try:
        show("beside a busy thread", await lateness())
        # The loop's thread has priority while the block lasts, and so has every task of the loop.
        with torchgil.gil_priority():
            show("the same, with gil_priority()", await lateness())
    finally:
        stop.set()
        other.join()


asyncio.run(main())
