"""Every future accounted for: random histories of a batcher against a model, and many requests at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import torchgil
from tests.conftest import in_threads

BAD = -1.0


@dataclass
class Asked:
    """One request that the batcher took, and what may become of it."""

    future: concurrent.futures.Future
    value: float
    rows: int
    timed: bool
    awaited: bool  # by a task on an event loop
    cancelled: bool = False
    endings: list = field(default_factory=list)


class BatcherMachine(RuleBasedStateMachine):
    """Submits, awaits, cancels, times out, fails, shuts down in any order; the function is held at will."""

    @initialize(
        max_batch_size=st.integers(1, 5),
        max_queue=st.integers(1, 6),
        concurrency=st.integers(1, 3),
        on_full=st.sampled_from(["raise", "block"]),
        retry_halves=st.booleans(),
        max_delay=st.sampled_from([0, 0.001, 3600]),
    )
    def start(self, **options):
        self.max_batch_size = options["max_batch_size"]
        self.max_queue = options["max_queue"]
        self.retry_halves = options["retry_halves"]
        self.on_full = options["on_full"]
        self.asked: list[Asked] = []
        self.refused = 0
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.pool = torchgil.ThreadPool(3, intra_op_threads=1) if options["concurrency"] == 3 else None
        self.batcher = torchgil.Batcher(self.double, executor=self.pool, **options)
        self.loop = asyncio.new_event_loop()
        self.loop_thread = threading.Thread(target=self.loop.run_forever)
        self.loop_thread.start()

    def double(self, batch):
        assert len(batch) <= self.max_batch_size
        assert self.gate.wait(60)
        if (batch == BAD).any():
            raise ValueError("bad item")
        return batch * 2

    def note(self, future, value, rows, timed, *, awaited=False):
        asked = Asked(future, value, rows, timed, awaited)
        future.add_done_callback(asked.endings.append)
        self.asked.append(asked)

    @rule(
        value=st.sampled_from([1.0, 2.0, BAD]),
        rows=st.integers(0, 6),
        timeout=st.sampled_from([None, 0.0005]),
    )
    def submit(self, value, rows, timeout):
        # A blocked submit would wait for this very thread: so blocking ones get a time-out.
        limit = 0.0005 if self.on_full == "block" else timeout  # this thread must not block for ever
        try:
            future = self.batcher.submit(torch.full((rows, 1), value), timeout=limit)
        except torchgil.QueueFull:
            assert not self.closed
            self.refused += 1
        except torchgil.BatcherClosed:
            assert self.closed
            self.refused += 1
        else:
            self.note(future, value, rows, limit is not None)

    @rule(value=st.sampled_from([1.0, BAD]), rows=st.integers(1, 3), timeout=st.sampled_from([None, 0.0005]))
    def await_on_a_loop(self, value, rows, timeout):
        request = self.batcher(torch.full((rows, 1), value), timeout=timeout)
        future = asyncio.run_coroutine_threadsafe(request, self.loop)
        self.note(future, value, rows, timeout is not None, awaited=True)

    # How many were taken depends on the clock; what hypothesis draws must not.
    @rule(which=st.integers(0, 1000))
    def cancel(self, which):
        if self.asked:
            asked = self.asked[which % len(self.asked)]
            asked.cancelled |= asked.future.cancel()

    @rule()
    def hold_the_function(self):
        self.gate.clear()

    @rule()
    def let_the_function_go(self):
        self.gate.set()

    @rule()
    def let_time_pass(self):
        time.sleep(0.002)

    @rule(drain=st.booleans())
    def shut_down(self, drain):
        self.closed = True
        self.batcher.shutdown(drain, timeout=0.002)

    @invariant()
    def stats_add_up(self):
        if not hasattr(self, "batcher"):
            return
        stats = self.batcher.stats()
        ended = stats.done + stats.failed + stats.cancelled + stats.timed_out + stats.dropped
        assert stats.submitted == stats.queued + stats.running + ended
        assert stats.queued <= self.max_queue

    def teardown(self):
        if not hasattr(self, "batcher"):
            return
        self.gate.set()
        self.closed = True  # a request that its loop has not begun yet comes too late
        self.batcher.shutdown()
        # The loop's own hand-over ends with its last task.
        concurrent.futures.wait([asked.future for asked in self.asked], timeout=60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.loop_thread.join(60)
        self.loop.close()
        if self.pool is not None:
            self.pool.shutdown()
        for asked in self.asked:
            self.check(asked)
        stats = self.batcher.stats()
        assert (stats.queued, stats.running, stats.blocked) == (0, 0, 0)
        # What the batcher counted is what callers saw; but a cancelled task may have been answered before.
        seen = Counter(self.outcome(asked) for asked in self.asked)
        unsure = sum(asked.awaited and asked.future.cancelled() for asked in self.asked)
        for outcome in ("done", "failed", "timed_out"):
            assert seen[outcome] <= getattr(stats, outcome) <= seen[outcome] + unsure, (outcome, seen, stats)
        # A task that came after the shutdown was refused, which counts nowhere.
        sure = sum(self.outcome(asked) == "dropped" and not asked.awaited for asked in self.asked)
        assert sure <= stats.dropped <= seen["dropped"] + unsure, (seen, stats)
        assert seen["cancelled"] - unsure <= stats.cancelled <= seen["cancelled"]

    def outcome(self, asked):
        if asked.future.cancelled():
            return "cancelled"
        kinds = {torchgil.BatcherClosed: "dropped", torchgil.QueueFull: "full", TimeoutError: "timed_out"}
        error = asked.future.exception(0)
        return "done" if error is None else kinds.get(type(error), "failed")

    def check(self, asked):
        assert asked.future.done(), asked
        assert len(asked.endings) == 1, asked
        if asked.future.cancelled():
            assert asked.cancelled
            return
        error = asked.future.exception(0)
        if error is None:
            assert asked.value != BAD or asked.rows == 0
            assert asked.future.result(0).tolist() == [[2 * asked.value]] * asked.rows
        elif isinstance(error, ValueError):
            too_large = "larger than max_batch_size" in str(error)
            assert too_large == (asked.rows > self.max_batch_size)
            assert too_large or asked.value == BAD or not self.retry_halves
        elif isinstance(error, torchgil.BatcherClosed):
            assert self.closed
        elif isinstance(error, torchgil.QueueFull):
            pass  # an awaited request can only tell so through its future
        else:
            assert isinstance(error, TimeoutError), error
            assert asked.timed


BatcherMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.filterwarnings(
    "ignore:ThreadPool. 3 workers:RuntimeWarning", "ignore:Batcher. concurrency=2:RuntimeWarning"
)
class TestBatcherModel(BatcherMachine.TestCase):
    """Nothing hangs, nothing is answered twice, nothing is answered wrongly."""


@pytest.mark.slow
def test_eight_threads_with_thousands_of_requests_each_lose_nothing():
    each = int(os.environ.get("TORCHGIL_TEST_REQUESTS", "10000"))  # `make stress`: 100,000
    numbers = torch.arange(1000, dtype=torch.float32).unsqueeze(1).split(1)

    with torchgil.Batcher(lambda x: x + 1, max_delay=0, max_batch_size=256) as batcher:

        def client(i: int) -> int:
            right = 0
            for start in range(0, each, 500):
                futures = [batcher.submit(numbers[(start + i + j) % 1000]) for j in range(500)]
                answers = torch.cat([future.result(60) for future in futures]).squeeze(1)
                expected = (torch.arange(500) + start + i) % 1000 + 1
                right += int((answers == expected).sum())
            return right

        assert in_threads(client, 8, timeout=280) == [each] * 8
        stats = batcher.stats()
    assert (stats.done, stats.submitted) == (8 * each, 8 * each)


@pytest.mark.slow
def test_event_loops_that_are_killed_take_only_their_own_requests_along():
    each, tasks = int(os.environ.get("TORCHGIL_TEST_REQUESTS", "2000")), 50
    number = torch.arange(1000, dtype=torch.float32).unsqueeze(1).split(1)

    with torchgil.Batcher(lambda x: x + 1, max_delay=0, max_batch_size=256, max_queue=100) as batcher:

        def loops(i: int) -> Counter:
            """Loops one after the other, each stopped and closed amid its tasks, until all was asked."""
            seen = Counter()

            async def client() -> None:
                while seen["asked"] < each:
                    n = (seen["asked"] + i) % 1000
                    seen["asked"] += 1
                    answer = await batcher(number[n])
                    seen["right"] += int(answer.item() == n + 1)
                    if seen["right"] % 97 == 96:
                        asyncio.get_running_loop().stop()

            while seen["asked"] < each:
                loop = asyncio.new_event_loop()
                loop.set_exception_handler(lambda *_: None)  # of tasks that are destroyed while they wait
                clients = [loop.create_task(client()) for _ in range(tasks)]
                with contextlib.suppress(RuntimeError):  # stopped before they were done
                    loop.run_until_complete(asyncio.wait(clients))
                seen["abandoned"] += sum(not task.done() for task in clients)
                loop.close()
                seen["loops"] += 1
                del clients
            return seen

        def thread(i: int) -> Counter:
            if i:
                return loops(i)
            futures = [batcher.submit(number[j % 1000]) for j in range(each)]
            right = sum(future.result(60).item() == j % 1000 + 1 for j, future in enumerate(futures))
            return Counter(asked=each, right=right, loops=1)

        seen = in_threads(thread, 8, timeout=280)
        batcher.shutdown(timeout=60)
        stats = batcher.stats()
    asked = sum(s["asked"] for s in seen)
    right = sum(s["right"] for s in seen)
    assert [s["asked"] - s["right"] - s["abandoned"] for s in seen] == [0] * 8  # each with its own answer
    assert seen[0]["right"] == each
    assert all(s["loops"] > each // 200 and s["abandoned"] > 0 for s in seen[1:])
    assert (stats.queued, stats.blocked, stats.running, stats.failed, stats.dropped) == (0, 0, 0, 0, 0)
    assert stats.done + stats.cancelled == stats.submitted <= asked
    assert right <= stats.done


@pytest.mark.slow
def test_cancelling_and_answering_race_without_loss():
    with torchgil.Batcher(lambda x: x, max_delay=0, max_batch_size=4) as batcher:

        def client(i: int) -> tuple[int, int]:
            cancelled = done = 0
            for n in range(2000):
                future = batcher.submit(torch.ones(1), timeout=0.001 if n % 7 == 0 else None)
                won = future.cancel() if n % 3 else False
                try:
                    future.result(60)
                    done += 1
                    assert not won
                except concurrent.futures.CancelledError:
                    assert won
                    cancelled += 1
                except TimeoutError:
                    assert n % 7 == 0
            return cancelled, done

        counts = in_threads(client, 4)
        stats = batcher.stats()
    assert stats.cancelled == sum(cancelled for cancelled, _ in counts)
    assert stats.done == sum(done for _, done in counts)
    assert stats.submitted == 8000
