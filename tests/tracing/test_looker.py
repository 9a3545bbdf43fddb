"""Watchdogs and monitors look by one native thread, and share its looks."""

from __future__ import annotations

from tests.support.retries import once
from tests.tracing.hangs import child


def test_two_watchdogs_and_a_monitor_share_one_thread_that_looks() -> None:
    done = child("""
        def looking():
            names = []
            for task in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError):  # it ended just now
                    names.append(open(f"/proc/self/task/{task}/comm").read().strip())
            return names.count("torchgil-look")
        null = os.open(os.devnull, os.O_WRONLY)
        first, second = watched(0.1, hang_output=null), watched(0.2, hang_output=null)
        with first, torchgil.GilMonitor() as monitor:
            with second:
                time.sleep(0.1)
                print(looking())
                held.sleep(0.4)
            held.sleep(0.4)
            print(looking())
        end = time.monotonic() + 10
        while looking() and time.monotonic() < end:  # the system lists it for a moment after it was joined
            time.sleep(0.01)
        print(looking(), len(first.hangs), len(second.hangs), monitor.stats().held_share > 0.5)
    """)
    assert done.stdout.splitlines() == ["1", "1", "0 2 1 True"]


def test_a_watchdog_and_a_monitor_wake_as_often_as_one_of_them_beside_a_busy_thread_too() -> None:
    """By the kernel's count of the thread's sleeps, of the same time with each, in turn."""

    def check() -> None:
        done = child("""
            def sleeps():
                for task in os.listdir("/proc/self/task"):
                    with open(f"/proc/self/task/{task}/comm") as name:
                        if name.read() == "torchgil-look\\n":
                            lines = open(f"/proc/self/task/{task}/status").read().splitlines()
                            return int(dict(line.split(":") for line in lines)["voluntary_ctxt_switches"])
            def counted(watching):
                with contextlib.ExitStack() as stack:
                    for each in watching:
                        stack.enter_context(each)
                    time.sleep(0.05)  # until the thread has its name
                    before, end = sleeps(), time.monotonic() + 0.5
                    while time.monotonic() < end:
                        sum(range(1000))
                    return sleeps() - before
            watchdog, monitor = watched(10.0), torchgil.GilMonitor()
            counts = [0, 0, 0]
            for _ in range(4):
                for i, watching in enumerate([(watchdog,), (monitor,), (watchdog, monitor)]):
                    counts[i] += counted(watching)
            print(*counts)
        """)
        watchdog, monitor, both = map(int, done.stdout.split())
        assert min(watchdog, monitor) > 100
        assert both < 1.2 * max(watchdog, monitor), (watchdog, monitor, both)

    once(check)
