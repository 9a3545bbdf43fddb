"""The frames of a thread that hangs, read by another one, are those that the interpreter itself gives."""

from __future__ import annotations

import os

import pytest

from tests.tracing.hangs import child, told


def test_deep_and_large_stacks_are_cut() -> None:
    done = child("""
        def deep(n):
            return held.sleep(0.4) if n == 0 else deep(n - 1)
        sys.setrecursionlimit(2000)
        with watched(0.1) as watchdog:
            deep(900)
        print(len(watchdog.hangs[0].stack))
    """)
    assert "    ... more, further out\n" in told(done)[0]
    assert done.stdout == "100\n"


@pytest.mark.parametrize(
    "lines",
    [
        "[held.sleep(0.3) for _ in\n    range(1)]",
        "(x\n +\n  held.sleep(\n   0.3)\n)",
        "next(held.sleep(0.3) or i for i in [1])",
        "sorted([2, 1], key=lambda x:\n held.sleep(0.2))",
        "@held.sleep(0.3) or (lambda f: f)\ndef f(): pass",
        "class A:\n\n  x = held.sleep(0.3)",
        "\n" * 300 + "held.sleep(0.3)",
        "with suppress(TypeError):\n  try:\n    1/0\n  except ZeroDivisionError:\n    held.sleep(0.3)",
        "match 1:\n  case 1 if held.sleep(0.3) or 1:\n    pass",
        "f'''{x}{\nheld.sleep(0.3)\n}'''",
        # Specialised by the time that it is there.
        "for i in range(300):\n  (lambda: i)() + \\\n  (held.sleep(0.3) or 0 if i == 299 else 0)",
    ],
)
def test_the_line_is_the_one_that_the_interpreter_gives(lines: str) -> None:
    done = child(f"""
        from contextlib import suppress
        real, seen = held.sleep, []
        class held:
            @staticmethod
            def sleep(seconds):
                frame = sys._getframe(1)
                seen.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
                real(seconds)
        x = 0
        code = compile({lines!r}, "tried", "exec")
        with watched(0.1) as watchdog:
            with suppress(TypeError, SyntaxError):
                exec(code, globals())
        frame = watchdog.hangs[0].stack[-2]
        assert seen[0] == (frame.filename, frame.lineno, frame.name), (seen, frame)
        assert frame.filename == "tried"
    """)
    assert told(done)


def test_generators_coroutines_and_traced_code_have_their_lines() -> None:
    done = child("""
        import asyncio
        def generator():
            yield 1
            held.sleep(0.3)
            yield 2
        async def coroutine():
            await asyncio.sleep(0)
            for _ in generator():
                pass
        with watched(0.1) as watchdog:
            asyncio.run(coroutine())
            sys.settrace(lambda *_: (lambda *_: None))
            held.sleep(0.3)
            sys.settrace(None)
        in_generator, traced = watchdog.hangs
        print([frame.name for frame in in_generator.stack[-2:]], traced.lineno - in_generator.lineno)
    """)
    assert done.stdout == "['coroutine', 'generator'] 9\n", done


def test_many_short_hangs_beside_busy_threads_have_their_lines() -> None:
    """TORCHGIL_STRESS_HANGS: how many, 50 by default."""
    wanted = int(os.environ.get("TORCHGIL_STRESS_HANGS", "50"))
    done = child(
        f"""
        import itertools, random
        random.seed(1)
        names = [f"hang_{{i}}" for i in range(20)]
        space = dict(held=held)
        for name in names:  # each on a line of its own, in code of its own, at a depth of its own
            above = "\\n" * random.randrange(500)
            body = f"return {{name}}(n - 1) if n else held.sleep(0.02)"
            exec(f"{{above}}def {{name}}(n):\\n  {{body}}", space)
        lines = {{name: space[name].__code__.co_firstlineno + 1 for name in names}}
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                [str(i) for i in range(100)]
        null = os.open(os.devnull, os.O_WRONLY)
        others = [threading.Thread(target=busy) for _ in range(3)]
        with watched(0.01, threshold=0.01, mean_gap=0.001, max_holds=10**6, hang_output=null) as watchdog:
            for other in others:
                other.start()
            for i in range({wanted}):
                space[names[i % len(names)]](random.randrange(50))
            stop.set()
            for other in others:
                other.join()
        found = [hang for hang in watchdog.hangs if hang.function in lines]
        assert all(hang.lineno == lines[hang.function] and hang.thread_name == "MainThread" for hang in found)
        print(len(found))
        """,
        timeout=60 + wanted,
    )
    assert int(done.stdout) > wanted / 4, done  # a busy thread can take the whole of a short one's time
