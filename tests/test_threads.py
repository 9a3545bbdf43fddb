"""Settings are made, verified and put back; bad values change nothing."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import torchgil
from torchgil import _threads as threads

from .conftest import in_threads, run_in_child


def of_a_fresh_thread():
    return threads._in_fresh_thread(torch.get_num_threads)


class TestIntraOpThreads:
    def test_sets_this_thread_and_puts_it_back(self):
        before = torch.get_num_threads()
        with torchgil.intra_op_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            with torchgil.intra_op_threads(1):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == before + 1
        assert torch.get_num_threads() == before

    def test_leaves_other_threads_and_the_default_alone(self):
        default = of_a_fresh_thread()
        with torchgil.intra_op_threads(default + 3):
            assert of_a_fresh_thread() == default
        assert of_a_fresh_thread() == default

    def test_puts_it_back_when_the_block_raises(self):
        before = torch.get_num_threads()
        with pytest.raises(KeyError), torchgil.intra_op_threads(before + 1):
            raise KeyError
        assert torch.get_num_threads() == before

    def test_many_threads_at_once_each_keep_their_own(self):
        default = of_a_fresh_thread()

        def run(i):
            seen = set()
            for _ in range(20):
                with torchgil.intra_op_threads(i + 1):
                    torch.ones(100, 100) @ torch.ones(100, 100)
                    seen.add(torch.get_num_threads())
            return seen

        assert in_threads(run, 6) == [{i + 1} for i in range(6)]
        assert of_a_fresh_thread() == default

    def test_a_librarys_first_parallel_region_leaves_a_threads_own_number(self):
        """By itself torch takes the default then: once in each thread, for each library with such regions."""
        x = torch.randn(512, 512)

        def own() -> tuple[int, int]:
            with torchgil.intra_op_threads(of_a_fresh_thread() + 1):
                before = torch.get_num_threads()
                torchgil.released.rms_norm(x, x[0])
                return before, torch.get_num_threads()

        with ThreadPoolExecutor(1) as pool:
            before, after = pool.submit(own).result(60)
        assert after == before == of_a_fresh_thread() + 1

    @pytest.mark.parametrize("n", [0, -1, 1.5, "2", None, True, 5000])
    def test_a_number_that_is_none_changes_nothing(self, n):
        before = torch.get_num_threads(), of_a_fresh_thread()
        with (
            pytest.raises(ValueError, match="n must be an integer from 1 to 4096"),
            torchgil.intra_op_threads(n),
        ):
            pass
        assert (torch.get_num_threads(), of_a_fresh_thread()) == before

    def test_it_is_what_ops_use(self):
        """Counted by the operating system: an op of one thread wakes none."""
        run_in_child(
            """
            import os, torch, torchgil
            def threads():
                return set(os.listdir("/proc/self/task"))  # a joined one stays for a moment
            a = torch.randn(600, 600)
            with torchgil.intra_op_threads(1):
                before = threads()
                a @ a; a + a; a.sum()
                assert threads() <= before, (threads(), before)
            with torchgil.intra_op_threads(3):
                before = threads()
                torch.randn(3_000_000).add_(1)
                assert len(threads() - before) >= 2, (threads(), before)  # the positive control
            """
        )


class TestSwitchInterval:
    def test_sets_and_puts_back(self):
        before = sys.getswitchinterval()
        with torchgil.switch_interval(1e-3):
            assert sys.getswitchinterval() == pytest.approx(1e-3)
            with torchgil.switch_interval(1e-6):
                assert sys.getswitchinterval() == pytest.approx(1e-6)
            assert sys.getswitchinterval() == pytest.approx(1e-3)
        assert sys.getswitchinterval() == before

    def test_puts_it_back_when_the_block_raises(self):
        before = sys.getswitchinterval()
        with pytest.raises(KeyError), torchgil.switch_interval(1e-3):
            raise KeyError
        assert sys.getswitchinterval() == before

    def test_blocks_of_several_threads_that_overlap(self):
        before = sys.getswitchinterval()
        entered, leave = threading.Event(), threading.Event()

        def other():
            with torchgil.switch_interval(2e-3):
                entered.set()
                leave.wait()

        with torchgil.switch_interval(1e-3):
            thread = threading.Thread(target=other)
            thread.start()
            entered.wait()
            assert sys.getswitchinterval() == pytest.approx(2e-3)
        assert sys.getswitchinterval() == pytest.approx(2e-3), "the other block is still open"
        leave.set()
        thread.join()
        assert sys.getswitchinterval() == before

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e-9, 1e9, "5ms", None, True])
    def test_a_value_that_is_none_changes_nothing(self, seconds):
        before = sys.getswitchinterval()
        with (
            pytest.raises(ValueError, match="seconds must be a number from"),
            torchgil.switch_interval(seconds),
        ):
            pass
        assert sys.getswitchinterval() == before


class TestUsableCores:
    def test_follows_the_affinity(self):
        child = run_in_child(
            """
            import os, torchgil
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            print(torchgil.usable_cores())
            """
        )
        assert child.stdout.strip() == "1"

    @pytest.mark.parametrize(
        ("files", "groups", "quota"),
        [
            ({"a/b/cpu.max": "max 100000"}, "0::/a/b\n", None),
            ({"a/b/cpu.max": "150000 100000"}, "0::/a/b\n", 1.5),
            ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, "0::/a/b\n", 0.5),
            (
                {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"},
                "4:cpu,cpuacct:/x\n",
                2.0,
            ),
            ({"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, "4:cpu:/x\n", None),
            ({}, "", None),
        ],
    )
    def test_reads_the_quota_of_every_level(self, tmp_path: Path, files, groups, quota):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        own = tmp_path / "own"
        own.write_text(groups)
        assert threads._cgroup_quota(tmp_path, own) == quota

    def test_no_control_groups_no_quota(self, tmp_path: Path):
        assert threads._cgroup_quota(tmp_path, tmp_path / "absent") is None

    @pytest.mark.parametrize(
        ("affinity", "quota", "cores"), [(8, None, 8), (8, 2.5, 2), (2, 6.0, 2), (4, 0.5, 1)]
    )
    def test_is_the_smaller_of_affinity_and_quota_and_one_at_least(self, monkeypatch, affinity, quota, cores):
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
        monkeypatch.setattr(threads, "_cgroup_quota", lambda: quota)
        assert threads.usable_cores() == cores


def test_a_fork_while_another_thread_sets_leaves_the_child_working():
    run_in_child("""
        import os, signal, threading, torchgil
        from torchgil import _threads as threads
        holding, done = threading.Event(), threading.Event()
        def hold():
            with threads._switch_interval_lock, threads._set_num_threads_lock:
                holding.set()
                done.wait()
        holder = threading.Thread(target=hold)
        holder.start()
        holding.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # the child waits for nobody for ever
            with torchgil.switch_interval(1e-3), torchgil.intra_op_threads(1):
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        done.set()
        holder.join()
        assert status == 0, status
    """)


@pytest.mark.parametrize("starts", [0, 1])
def test_a_worker_gets_its_number_while_the_interpreter_ends(monkeypatch, starts):
    """Python 3.12 and later start no thread then; the end may come between the two that are asked for."""

    def start(self, original=threading.Thread.start):
        nonlocal starts
        starts -= 1
        if starts < 0:
            raise RuntimeError("can't create new thread at interpreter shutdown")
        original(self)

    def work():
        threads.set_own_intra_op_threads(torch.get_num_threads() + 1)
        return torch.get_num_threads()

    expected = torch.get_num_threads() + 1
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        monkeypatch.setattr(threading.Thread, "start", start)
        assert pool.submit(work).result() == expected
        monkeypatch.undo()
    with ThreadPoolExecutor(1) as pool:  # the default, should somebody come after all
        pool.submit(torch.set_num_threads, expected - 1).result()
