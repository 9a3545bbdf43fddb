"""An event loop whose thread has priority: every task has it, and it comes back beside a busy thread."""

from __future__ import annotations

import asyncio

from tests.conftest import run_in_child
from tests.priority.test_priority import BUSY
from torchgil._gil_half import C
from torchgil._priority import gil_priority

# A loop comes back from twenty sleeps while another thread is busy in Python, if its thread has priority.
BESIDE = f"""{BUSY}
import asyncio
from torchgil._gil_half import C
async def sleeps():
    for _ in range(20):
        await asyncio.sleep(0.001)
    order.append("the loop")
async def begin():
    threading.Thread(target=busy).start()
    released.wait(started, 60)
    await sleeps()
"""


def test_a_block_around_the_loop_is_every_tasks_own_and_ends_with_it():
    async def task():
        await asyncio.sleep(0)
        return C.has_priority()

    async def main():
        return await asyncio.gather(task(), task(), asyncio.to_thread(C.has_priority))

    with gil_priority():
        assert asyncio.run(main()) == [True, True, False]  # the last is another thread
    assert asyncio.run(task()) is False


def test_a_block_in_a_running_loop_is_its_threads_until_it_ends():
    async def other(seen):
        for _ in range(4):
            seen.append(C.has_priority())
            await asyncio.sleep(0)

    async def main():
        seen: list[bool] = []
        beside = asyncio.create_task(other(seen))
        await asyncio.sleep(0)
        with gil_priority():
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await beside
        return seen

    assert asyncio.run(main()) == [False, True, True, False]


def test_a_decorated_coroutine_has_it_within_its_own_steps_alone():
    @gil_priority
    async def step(seen):
        for _ in range(2):
            seen.append(("step", C.has_priority()))
            await asyncio.sleep(0)

    async def other(seen):
        for _ in range(2):
            seen.append(("other", C.has_priority()))
            await asyncio.sleep(0)

    async def main():
        seen: list[tuple[str, bool]] = []
        await asyncio.gather(step(seen), other(seen))
        return seen

    assert asyncio.run(main()) == [("step", True), ("other", False)] * 2


def test_it_comes_back_beside_a_busy_thread_around_the_loop_and_within_it():
    """The interval is a hundred seconds: without priority the busy thread comes to its end first."""
    count = "count = 1_000_000_000\n"
    around = f"{BESIDE}{count}with gil_priority(): asyncio.run(begin())\nprint(*order)"
    main = "async def main():\n with gil_priority(): await begin()\n"
    within = f"{BESIDE}{count}{main}asyncio.run(main())\nprint(*order)"
    for code in (around, within):
        assert run_in_child(code).stdout.split("\n")[0].startswith("the loop"), code


def test_the_control_without_priority_it_waits_for_the_busy_thread():
    code = f"{BESIDE}count = 3_000_000\nasyncio.run(begin())\nprint(*order)"
    assert run_in_child(code).stdout == "busy the loop\n"
