"""Settings as decorators: around each call, each step of a generator or coroutine, or refused."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import torchgil
from tests.conftest import run_in_child
from torchgil._gil_half import C

SETTINGS = {
    "gil_priority": (torchgil.gil_priority, C.has_priority),
    "intra_op_threads": (
        lambda: torchgil.intra_op_threads(3),
        lambda: torch.get_num_threads() == 3,
    ),
    "switch_interval": (
        lambda: torchgil.switch_interval(1e-3),
        lambda: sys.getswitchinterval() == pytest.approx(1e-3),
    ),
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    return SETTINGS[request.param]


class Pause:
    """Awaited, it suspends its coroutine once."""

    def __await__(self):
        return (yield)


class Everything:
    """Each kind of function once; all return what `holds` said at each of their steps."""

    def __init__(self, make, holds):
        def plain(x):
            return x, [holds()]

        async def coroutine(x):
            seen = [holds()]
            await Pause()
            return x, [*seen, holds()]

        def generator(x):
            seen = [holds()]
            yield
            return x, [*seen, holds()]

        def returns_coroutine(x):
            return coroutine(x)

        class Object:
            async def __call__(self, x):
                return await coroutine(x)

        class Method:
            async def method(self, x):
                return await coroutine(x)

        @types.coroutine
        def by_hand(x):
            return (yield from generator(x))

        setting = make()
        self.plain = {
            "plain": setting(plain),
            "partial": setting(functools.partial(plain)),
            "builtin": lambda x: (x, [setting(holds)()]),
        }
        self.coroutines = {
            "coroutine": setting(coroutine),
            "partial": setting(functools.partial(coroutine)),
            "partial of a method": setting(functools.partial(Method.method, None)),
            "method": setting(Method().method),
            "object": setting(Object()),
            "partial of an object": setting(functools.partial(Object())),
            "types.coroutine": setting(by_hand),
            "types.coroutine of a function": setting(types.coroutine(lambda x: generator(x))),
            "a function that returns one": setting(returns_coroutine),
            "twice": setting(setting(coroutine)),
        }
        self.generators = {
            "generator": setting(generator),
            "partial": setting(functools.partial(generator)),
            "a function that returns one": setting(lambda x: generator(x)),
        }


def test_each_kind_of_function_has_it_at_each_step_and_nobody_between(setting):
    make, holds = setting
    everything = Everything(make, holds)
    for name, function in everything.plain.items():
        assert function(7) == (7, [True]), name
        assert not holds(), name
    for name, function in everything.coroutines.items():

        async def awaits(function=function):
            return await function(7)

        coroutine = awaits()
        coroutine.send(None)
        assert not holds(), name
        with pytest.raises(StopIteration) as end:
            coroutine.send(None)
        assert end.value.value == (7, [True, True]), name
        assert not holds(), name
    for name, function in everything.generators.items():
        steps = function(7)
        assert inspect.isgenerator(steps)
        next(steps)
        assert not holds(), name
        with pytest.raises(StopIteration) as end:
            next(steps)
        assert end.value.value == (7, [True, True]), name


def test_what_frameworks_ask_of_a_function_is_as_before(setting):
    everything = Everything(*setting)
    for name in ("coroutine", "partial", "method", "object", "partial of an object"):
        assert inspect.iscoroutinefunction(everything.coroutines[name]), name
    coroutine = everything.coroutines["a function that returns one"](7)
    assert asyncio.iscoroutine(coroutine)
    coroutine.send(None)
    coroutine.close()
    assert inspect.isgeneratorfunction(everything.generators["generator"])
    assert everything.plain["plain"].__name__ == "plain"


def test_methods_of_all_kinds_may_be_decorated_above_or_below(setting):
    make, holds = setting

    class Class:
        @make()
        @staticmethod
        def static(x):
            return x, holds()

        @staticmethod
        @make()
        def static_below(x):
            return x, holds()

        @make()
        @classmethod
        def of_class(cls, x):
            return cls, x, holds()

        @classmethod
        @make()
        def of_class_below(cls, x):
            return cls, x, holds()

        def _both(self, x, y):
            return self, x, y, holds()

        partial = make()(functools.partialmethod(_both, 1))

        @make()
        @classmethod
        async def a_coroutine(cls):
            await Pause()
            return cls, holds()

    one = Class()
    for of in (one, Class):
        assert of.static(3) == of.static_below(3) == (3, True)
        assert of.of_class(3) == of.of_class_below(3) == (Class, 3, True)
    assert one.partial(2) == (one, 1, 2, True)
    coroutine = one.a_coroutine()
    coroutine.send(None)
    assert not holds()
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    assert end.value.value == (Class, True)


def test_what_it_cannot_be_around_is_refused_with_what_to_write(setting):
    make, _ = setting

    async def agen():
        yield

    class Object:
        async def __call__(self):
            yield

    for function in (agen, functools.partial(agen), Object()):
        with pytest.raises(
            TypeError, match=r"is an async generator function; put `with torchgil\.\w+\(.*\):`"
        ):
            make()(function)
    with pytest.raises(TypeError, match="is an async generator function"):
        make()(lambda: agen())()
    with pytest.raises(TypeError, match="Object is a class; decorate its methods"):
        make()(Object)
    with pytest.raises(TypeError, match="got property; put the other decorator above this one"):
        make()(property(agen))
    with pytest.raises(TypeError, match="a function is expected, got int"):
        make()(3)


def test_throwing_and_closing_reach_the_function_with_the_setting(setting):
    make, holds = setting
    seen = []

    @make()
    def generator():
        try:
            yield 1
        except KeyError:
            seen.append(holds())
        try:
            yield 2
        finally:
            seen.append(holds())

    steps = generator()
    assert next(steps) == 1
    assert steps.throw(KeyError()) == 2
    steps.close()
    assert seen == [True, True]
    assert not holds()


def test_tasks_of_a_loop_do_not_see_each_others(setting):
    make, holds = setting
    seen = []

    @make()
    async def with_it():
        for _ in range(3):
            seen.append(("with", holds()))
            await asyncio.sleep(0)

    async def without():
        for _ in range(5):
            seen.append(("without", holds()))
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(with_it(), without(), with_it())

    asyncio.run(main())
    assert set(seen) == {("with", True), ("without", False)}


@pytest.mark.parametrize("name", ["intra_op_threads", "switch_interval"])
def test_blocks_that_end_in_another_order_leave_what_was_there_before(name):
    make, holds = SETTINGS[name]
    read = {"intra_op_threads": torch.get_num_threads, "switch_interval": sys.getswitchinterval}[name]
    other = {
        "intra_op_threads": lambda: torchgil.intra_op_threads(4),
        "switch_interval": lambda: torchgil.switch_interval(2e-3),
    }[name]
    before = read()
    first, second, third = make(), other(), make()
    for block in (first, second, third):
        block.__enter__()
    second.__exit__(None, None, None)
    assert holds()
    first.__exit__(None, None, None)
    assert holds()
    third.__exit__(None, None, None)
    assert read() == before
    with make():
        assert holds()
    assert read() == before


def test_a_block_that_another_thread_ends_leaves_that_threads_number_alone():
    def generator():
        with torchgil.intra_op_threads(3):
            yield

    def begin():
        next(steps)
        return torch.get_num_threads()

    def end():
        before = torch.get_num_threads()
        steps.close()
        return before, torch.get_num_threads()

    steps = generator()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        assert one.submit(begin).result(60) == 3
        before, after = another.submit(end).result(60)
    assert before == after


def test_a_block_is_entered_once_at_a_time():
    block = torchgil.intra_op_threads(1)
    with block, pytest.raises(RuntimeError, match="open already; call it again for another"):
        block.__enter__()
    with block:
        assert torch.get_num_threads() == 1


def test_a_witness_is_no_decorator():
    with pytest.raises(TypeError, match="'witness' object is not callable"):
        torchgil.ops.witness()(print)


@pytest.mark.parametrize(
    "make", [torchgil.intra_op_threads, torchgil.switch_interval], ids=["threads", "interval"]
)
def test_a_wrong_number_is_refused_when_it_is_given(make):
    for wrong in ("1", None, True, float("nan"), -1, 10**400, -(10**400), [1], 1j):
        with pytest.raises(ValueError, match="must be"):
            make(wrong)


INTERRUPTED = """
    import contextlib, itertools, os, sys, threading, torch, torchgil
    from tests.support.interrupts import Interrupts
    torch.set_num_threads(2)
    makes = {
        "interval": lambda: torchgil.switch_interval(1e-3),
        "threads": lambda: torchgil.intra_op_threads(1),
    }
    make = makes[sys.argv[1]]
    ours = os.path.dirname(torchgil.__file__)

    def settings():
        numbers = [sys.getswitchinterval(), torch.get_num_threads()]
        fresh = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        return numbers

    with make():
        pass
    before = settings()
    for nth in itertools.count(1):
        interrupts = Interrupts(nth, ours, contextlib.__file__, without_a_step=("__enter__", "block"))
        try:
            sys.setprofile(interrupts)
            with make():
                sys.setprofile(interrupts)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert settings() == before, (interrupts.at, settings())
        if interrupts.left > 0:
            break
    with make():
        assert settings() != before
    assert settings() == before
    print(nth)
"""


@pytest.mark.parametrize("name", ["interval", "threads"])
def test_ctrl_c_at_any_step_leaves_what_was_there_before(name):
    """The process's default of intra-op threads among it."""
    child = run_in_child(INTERRUPTED, name)
    assert int(child.stdout) > 20  # so many steps were interrupted, the last of them none


@pytest.mark.parametrize(
    "kept",
    [
        "kept = {make}; kept.__enter__()",
        "kept = contextlib.ExitStack(); kept.enter_context({make})",
        "def steps():\n with {make}: yield\nkept = steps(); next(kept)",
        "@{make}\ndef steps(): yield\nkept = steps(); next(kept)",
    ],
    ids=["by hand", "stack", "in a generator", "around a generator"],
)
@pytest.mark.parametrize(
    "make", ["torchgil.intra_op_threads(3)", "torchgil.switch_interval(1e-3)", "torchgil.gil_priority()"]
)
def test_a_block_that_is_open_when_the_interpreter_ends(kept, make):
    """It is left there; a thread that was started to put a number back waited for the GIL for ever."""
    code = "import contextlib, torchgil\n" + kept.format(make=make)
    # In an interpreter of its own: which of its objects are gone when the block is left is part of the case.
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_gil_priority_decorates_without_parentheses():
    @torchgil.gil_priority
    def has(x):
        return x, C.has_priority()

    assert has(1) == (1, True)
    assert has.__name__ == "has"
    assert not C.has_priority()
    with pytest.raises(TypeError, match="is a class"):
        torchgil.gil_priority(dict)
