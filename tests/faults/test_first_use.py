"""torchgil's names are looked up at their first use, by several threads at once too."""

from __future__ import annotations

from ..conftest import run_in_child


def test_every_name_is_found_by_threads_that_ask_for_the_first_time_together():
    run_in_child(
        """
        import os, random, sys, threading, torch, torchgil
        for seed in range(4):
            if pid := os.fork():  # each has imported nothing of torchgil's wings
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, seed
                continue
            sys.setswitchinterval(1e-5)
            start, found = threading.Barrier(8), []
            def run(i):
                names = sorted(torchgil._PUBLIC)
                random.Random(8 * seed + i).shuffle(names)
                start.wait()
                found.append([getattr(torchgil, name) for name in names])
            threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            os._exit(len(found) != 8)
        """
    )
