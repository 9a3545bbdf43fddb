"""Tensors that are freed by the collector, wherever it runs."""

from __future__ import annotations

from ..conftest import run_in_child


def test_traces_list_the_threads_while_garbage_with_tensors_is_collected():
    """Where it is collected as the interpreter lists its threads, this stands still."""
    run_in_child(
        """
        import gc, threading, torch, torchgil
        class Node:
            pass
        def garbage():
            node = Node()
            node.tensors, node.itself = [torch.ones(4) for _ in range(20)], node
        ended = threading.Event()
        def churn():
            while not ended.is_set():
                garbage()
                thread = threading.Thread(target=int)
                thread.start()
                thread.join()
        gc.set_threshold(20, 5, 5)
        threads = [threading.Thread(target=churn) for _ in range(4)]
        [thread.start() for thread in threads]
        for _ in range(200):
            garbage()
            with torchgil.trace(max_events=1000):
                pass
        ended.set()
        [thread.join() for thread in threads]
        assert gc.isenabled()
        """,
        timeout=60,
    )
