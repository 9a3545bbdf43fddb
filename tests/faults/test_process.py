"""Exit and fork with ops running: each in a child process, with a limit."""

import pytest

from ..conftest import run_in_child


@pytest.mark.parametrize("call", ["spin(60)", "sleep(60)", "wait(torchgil.Latch(), 60)"])
def test_a_daemon_thread_inside_a_released_op_does_not_stop_the_process_from_exiting(call):
    child = run_in_child(
        f"""
        import threading, time, torch, torchgil
        threading.Thread(target=lambda: torchgil.released.{call}, daemon=True).start()
        time.sleep(0.05)
        print("end")
        """,
        timeout=30,
        whole_end=True,
    )
    assert (child.stdout, child.stderr) == ("end\n", "")


def test_a_daemon_thread_whose_op_ends_during_shutdown_is_parked():
    """Plain torch ends such a process with "terminate called without an active exception"."""
    child = run_in_child(
        """
        import atexit, threading, time, torch, torchgil

        class AtTheVeryEnd:
            # Kept by the interpreter's last module to be cleared: by then it is finalizing.
            def __del__(self, held_sleep=torchgil.held.sleep):
                held_sleep(0.5)

        import sys
        sys.keep = AtTheVeryEnd()

        def ops():
            while True:
                torchgil.released.spin(0.002)

        for _ in range(4):
            threading.Thread(target=ops, daemon=True).start()
        time.sleep(0.1)
        print("end")
        """,
        timeout=30,
        whole_end=True,
    )
    assert (child.stdout, child.stderr) == ("end\n", "")


@pytest.mark.parametrize("call", ["released", "adaptive", "nogil"])
def test_the_thread_that_shuts_the_interpreter_down_gets_the_gil_back(call):
    child = run_in_child(
        """
        import functools, os, sys, torch, torchgil

        x = torch.ones(1)
        makes = {
            "released": lambda: functools.partial(torchgil.released.spin, 0.001),
            "adaptive": lambda: functools.partial(torchgil.adaptive.sleep, 0.01),
            "nogil": lambda: functools.partial(torchgil.nogil(torch.nn.ReLU(), (x,)), x),
        }

        class AtTheVeryEnd:
            def __init__(self):
                self.call, self.write = makes[sys.argv[1]](), os.write

            def __del__(self):
                self.call()
                self.write(1, b"came back")

        sys.keep = AtTheVeryEnd()
        """,
        call,
        timeout=60,
        whole_end=True,
    )
    assert child.stdout == "came back"


def test_plain_threads_are_waited_for():
    child = run_in_child(
        """
        import threading, torch, torchgil
        def run():
            torchgil.released.spin(0.2)
            print("op ended")
        threading.Thread(target=run).start()
        """,
        timeout=60,
        whole_end=True,
    )
    assert child.stdout == "op ended\n"


def test_an_intended_deadlock_runs_into_its_limit():
    """The positive control of every limit here: a held wait for what only Python can do. It says where."""
    child = run_in_child(
        """
        import threading, torch, torchgil
        latch = torchgil.Latch()
        threading.Timer(0.1, latch.open).start()
        torchgil.held.wait(latch, 1e9)
        """,
        timeout=2,
        check=False,
    )
    assert child.exit_code is None
    assert 'File "<string>", line 5 in <module>' in child.stderr


def test_a_fork_while_another_thread_is_in_a_released_op():
    child = run_in_child(
        """
        import os, threading, torch, torchgil, warnings
        warnings.simplefilter("ignore")
        thread = threading.Thread(target=lambda: torchgil.released.spin(0.5))
        thread.start()
        pid = os.fork()
        if pid == 0:
            torchgil.released.add(torch.ones(2), torch.ones(2))
            assert torchgil.released.wait(torchgil.Latch(), 0.01) is False
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        thread.join()
        print("both")
        """,
        timeout=60,
    )
    assert child.stdout == "both\n"


def test_an_error_inside_a_released_op_leaves_the_gil_right():
    child = run_in_child(
        """
        import ctypes, threading, torch, torchgil
        ended = []
        def run():
            for policy in (torchgil.released, torchgil.held, torchgil.adaptive, torch.ops.torchgil):
                for _ in range(200):
                    try:
                        policy.add(torch.ones(2), torch.ones(3))
                    except RuntimeError as error:
                        assert "must match the size" in str(error), error
                        assert ctypes.pythonapi.PyGILState_Check() == 1
                    else:
                        raise AssertionError
            ended.append(1)
        threads = [threading.Thread(target=run) for _ in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(len(ended))
        """,
        timeout=120,
    )
    assert child.stdout == "8\n", child
