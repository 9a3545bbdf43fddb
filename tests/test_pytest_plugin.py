"""The pytest plugin, run in pytest's own child processes."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import run_in_child
from tests.support.retries import once

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs pytest over a file of tests; as an installed plugin if it is one, else by its module's name."""
    installed = any(ep.name == "torchgil" for ep in metadata.entry_points(group="pytest11"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plugin = [] if installed else ["-p", "torchgil.pytest_plugin"]

    def run(
        code: str, *options: str, ini: str = "", others: str = "no:asyncio", timeout: float = 240
    ) -> pytest.RunResult:
        pytester.makeini(f"[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n{ini}")
        pytester.makepyfile(code)
        return pytester.runpytest_subprocess(*plugin, "-p", others, *options, timeout=timeout)

    return run


def test_importing_it_imports_neither_torch_nor_the_extension() -> None:
    run_in_child(
        """
        import sys
        import torchgil.pytest_plugin
        assert not {"torch", "torchgil._gil", "torchgil._torch"} & sys.modules.keys()
        """,
        fresh=True,
    )


def test_a_run_without_a_marked_test_never_imports_torch(run) -> None:  # type: ignore[no-untyped-def]
    result = run(
        """
        import sys
        def test_plain():
            assert "torch" not in sys.modules
        """,
        "--gil-report",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*GIL report*", "No test was audited: mark some with releases_gil*"])


def test_help_and_markers_describe_themselves(run) -> None:  # type: ignore[no-untyped-def]
    run("", "--help").stdout.fnmatch_lines(["who holds the GIL:", "*--gil-report*"])
    run("", "--markers").stdout.fnmatch_lines(
        [
            "@pytest.mark.releases_gil(min_free=0.9): fail unless*",
            "@pytest.mark.max_gil_hold(seconds): fail if*",
        ]
    )


MARKED = """
    import threading, time, unittest
    import pytest
    from torchgil import held, released

    @pytest.mark.releases_gil
    def test_released_passes():
        released.spin(0.1)

    @pytest.mark.releases_gil(min_free=0.9)
    def test_held_fails():
        held.spin(0.2)

    @pytest.mark.releases_gil(0.9)
    def test_python_fails():
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass

    @pytest.mark.releases_gil(min_free=0)
    def test_zero_passes():
        held.spin(0.05)

    @pytest.mark.releases_gil(min_free=1)
    def test_one_fails():
        released.spin(0.1)

    @pytest.mark.releases_gil(min_free=0.3)
    @pytest.mark.max_gil_hold(5)
    def test_half_passes():
        released.sleep(0.1)
        held.spin(0.1)

    @pytest.mark.max_gil_hold(0.01)
    def test_hold_fails():
        held.spin(0.2)

    @pytest.mark.max_gil_hold(0.01)
    def test_hold_in_another_thread_fails():
        thread = threading.Thread(target=held.spin, args=(0.2,), name="worker")
        thread.start()
        thread.join()

    @pytest.mark.max_gil_hold(seconds=5)
    def test_short_hold_passes():
        held.spin(0.2)

    @pytest.mark.max_gil_hold(0.2)
    def test_long_release_and_long_python_pass():
        released.spin(0.3)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass

    @pytest.mark.max_gil_hold(0)
    def test_no_hold_at_all_fails():
        pass

    @pytest.mark.releases_gil
    class TestClass:
        @pytest.fixture
        def number(self):
            held.spin(0.2)  # set-up is not judged
            yield 3
            held.spin(0.2)

        @pytest.mark.parametrize("seconds", [0.1])
        def test_method_passes(self, number, seconds):
            assert number == 3
            released.spin(seconds)

        def test_method_fails(self):
            held.spin(0.1)

    class TestUnittest(unittest.TestCase):
        @pytest.mark.releases_gil
        def test_unittest_passes(self):
            released.spin(0.1)

        @pytest.mark.releases_gil
        def test_unittest_fails(self):
            held.spin(0.1)

    @pytest.mark.releases_gil
    def test_own_failure_is_shown_fails():
        released.spin(0.1)
        assert 1 == 2, "the test's own reason"

    @pytest.mark.releases_gil
    def test_skip():
        pytest.skip("no reason")

    @pytest.mark.xfail(strict=True)
    @pytest.mark.releases_gil
    def test_expected_to_hold():
        held.spin(0.1)

    def test_plain_passes():
        held.spin(0.1)
"""


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_judges_the_call_of_marked_tests(run, options: list[str]) -> None:  # type: ignore[no-untyped-def]
    result = run(MARKED, "-v", "--gil-report", *options)
    text = result.stdout.str()
    words = "PASSED|FAILED|GIL HELD"
    found = re.findall(rf"::(test_\w+)\S* ({words})", text)  # xdist names the outcome first
    found += [(name, word) for word, name in re.findall(rf"(?m)({words}) \S+::(test_\w+)\S* *$", text)]
    outcomes = {name: word for name, word in found if name.endswith(("_passes", "_pass", "_fails"))}
    expected = {name: "GIL HELD" if name.endswith("_fails") else "PASSED" for name in outcomes}
    assert outcomes == {**expected, "test_own_failure_is_shown_fails": "FAILED"}
    assert len(outcomes) == 17
    result.assert_outcomes(passed=8, failed=9, skipped=1, xfailed=1)
    assert re.search(r"9 failed, 8 passed, 1 skipped, 1 xfailed, 8 held the GIL in", text)
    assert re.search(r"GIL report =+\ntest +verdict +wall +free +held +waited +longest hold\n", text)
    # Every audited test that did not fail by itself has a row, the longest hold first.
    assert len(re.findall(r"(?m)^test_\S+::\S+ +(?:holds|releases|partly) +\d", text)) == 16
    assert "the test's own reason" in text


def test_failures_explain_themselves(run) -> None:  # type: ignore[no-untyped-def]
    texts = []

    def check():
        result = run(
            MARKED, "-k", "test_held_fails or test_hold_fails or in_another_thread or test_python_fails"
        )
        text = result.stdout.str()
        texts.append(text)
        line = next(i for i, line in enumerate(MARKED.splitlines()) if "def test_held_fails" in line) + 1
        assert re.search(
            r"releases_gil\(min_free=0\.9\): the GIL was free for 0\.\d % of the test's \d+ ms\n"
            r"-+ GIL breach -+\n"
            r"holds: 0\.\d % of \d+ ms free \(\d releases?\)\n"
            r"free \S+(?: \w+)?, held \d+ ms \(longest \d+ ms\), waited .*, preempted .*\n",
            text,
        )
        assert re.search(
            rf"line MainThread held the GIL for \d+\.\d ms at .*test_failures_explain_themselves\.py:{line} "
            r"in test_held_fails: held\.spin\(0\.2\)",
            text,
        )
        assert re.search(r"op torchgil::spin: 1 call, held \d+ ms of \d+ ms, longest hold \d+ ms", text)
        assert re.search(r"max_gil_hold\(0\.01\): MainThread held the GIL for \d+ ms in one go", text)
        assert re.search(r"max_gil_hold\(0\.01\): worker held the GIL for \d+ ms in one go", text)
        assert re.search(r"line worker held the GIL for", text)
        assert "line: not known, as no single call kept it for much more than 10.0 ms" in text

        assert re.search(r"(?m)^GIL HELD \S+::test_held_fails - Failed: rel", text)
        assert re.search(r"(?m)^\S+\.py GGGG +\[100%\]$", text)
        assert re.search(r"4 failed, \d+ deselected, 4 held the GIL in", text)

    once(check)
    assert not [text for text in texts if "Traceback" in text]


def test_a_breach_stands_before_what_was_captured_and_is_in_no_other_tests_report(run) -> None:  # type: ignore[no-untyped-def]
    result = run(
        """
        import pytest
        from torchgil import held

        @pytest.mark.releases_gil
        def test_held():
            print("its output")
            held.spin(0.1)

        def test_fails():
            assert False
        """
    )
    text = result.stdout.str()
    assert text.count("GIL breach") == 1
    assert re.search(
        r"(?s)_ test_held _.*- GIL breach -.*- Captured stdout call -.*its output.*_ test_fails _", text
    )
    assert "2 failed, 1 held the GIL in" in text


def test_the_table_can_be_asked_for_in_the_ini_file(run) -> None:  # type: ignore[no-untyped-def]
    code = "def test(gil_audit):\n    gil_audit(sorted, [1])"
    rows = "*GIL report*", "*::test sorted *"
    run(code, ini="gil_report = true").stdout.fnmatch_lines(rows)
    run(code).stdout.no_fnmatch_line("*GIL report*")
    run(code, "-o", "gil_report=false", ini="gil_report = true").stdout.no_fnmatch_line("*GIL report*")


ASYNC = """
    import asyncio, pytest
    from torchgil import held, released

    {mark}
    async def test_async(gil_audit):
        await asyncio.sleep(0)
        assert gil_audit(released.sleep, 0.1).verdict == "releases"
        await asyncio.sleep(0)
        assert gil_audit(held.sleep, 0.1).verdict == "holds"

    {mark}
    @pytest.mark.max_gil_hold(0.01)
    async def test_marked():
        held.sleep(0.1)
    """


@pytest.mark.peer
@pytest.mark.parametrize(
    ("package", "mark", "mode"),
    [
        ("pytest_asyncio", "@pytest.mark.asyncio", "strict"),
        ("pytest_asyncio", "", "auto"),
        ("anyio", "@pytest.mark.anyio", None),
    ],
    ids=["pytest-asyncio", "pytest-asyncio, auto", "anyio"],
)
def test_the_fixture_audits_parts_of_a_coroutine_and_a_marker_on_one_is_refused(
    run,  # type: ignore[no-untyped-def]
    pytester,  # type: ignore[no-untyped-def]
    package: str,
    mark: str,
    mode: str | None,
) -> None:
    pytest.importorskip(package, reason=f"needs pip install {package.replace('_', '-')}")
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'")
    ini = f"asyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function" if mode else ""
    others = "no:none" if mode else "no:asyncio"
    result = run(ASYNC.format(mark=mark), "--gil-report", ini=ini, others=others)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*test_marked is a coroutine, and a marker judges a call*"])
    rows = re.findall(r"::test_async (\S+) +(holds|releases)", result.stdout.str())
    assert sorted(verdict for _, verdict in rows) == ["holds", "releases"]


def test_wrong_arguments_are_errors_that_say_what_is_right(run) -> None:  # type: ignore[no-untyped-def]
    marks = [
        ("releases_gil(min_free=1.1)", "min_free must be one number from 0 to 1"),
        ("releases_gil(-0.1)", "min_free must be one number from 0 to 1"),
        ("releases_gil(float('nan'))", "min_free must be one number from 0 to 1"),
        ("releases_gil('0.9')", "min_free must be one number from 0 to 1"),
        ("releases_gil(minfree=0.9)", "min_free must be one number from 0 to 1"),
        ("releases_gil(0.9, min_free=0.9)", "min_free must be one number from 0 to 1"),
        ("max_gil_hold", "seconds must be one number from 0, in seconds"),
        ("max_gil_hold(-1)", "seconds must be one number from 0, in seconds"),
        ("max_gil_hold(None)", "seconds must be one number from 0, in seconds"),
        ("max_gil_hold(10**400)", "seconds must be one number from 0, in seconds"),
        ("max_gil_hold(10**5000)", "seconds must be one number from 0, in seconds"),
        ("releases_gil(min_free=10**400)", "min_free must be one number from 0 to 1"),
        ("max_gil_hold(True)", "seconds must be one number from 0, in seconds"),
    ]
    code = "import pytest\n" + "\n".join(
        f"@pytest.mark.{mark}\ndef test_{i}(): pass\n" for i, (mark, _) in enumerate(marks)
    )
    result = run(code)
    result.assert_outcomes(errors=len(marks))
    for mark, message in marks:
        name = mark.partition("(")[0]
        assert re.search(rf"@pytest\.mark\.{name}\(.*\): {re.escape(message)}", result.stdout.str())


def test_the_fixture_audits_a_part_of_a_test(run) -> None:  # type: ignore[no-untyped-def]
    result = run(
        """
        import pytest
        from torchgil import held, released

        def test_part(gil_audit):
            held.spin(0.1)
            record = gil_audit(released.spin, 0.1)
            assert record.verdict == "releases"
            assert isinstance(record.result, int)
            assert gil_audit(lambda: held.spin(0.1)).verdict == "holds"
            with pytest.raises(ZeroDivisionError):
                gil_audit(lambda: 1 / 0)
            gil_audit(released.sleep, 0.01)  # the trace was taken down

        @pytest.mark.releases_gil
        def test_both(gil_audit):
            pass
        """,
        "--gil-report",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*gil_audit cannot be used in a test marked releases_gil or max_gil_hold*"])
    rows = re.findall(r"::test_part (\S+) +(holds|releases)", result.stdout.str())
    assert [verdict for _, verdict in rows] == ["holds", "releases", "releases"]


def test_audits_of_fixtures_are_reported_and_those_of_each_run_of_a_test_once(run, pytester) -> None:  # type: ignore[no-untyped-def]
    # As pytest-rerunfailures does it.
    pytester.makeconftest(
        """
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2 if "again" in item.name else 1):
                for report in runtestprotocol(item, nextitem=nextitem, log=False):
                    item.ihook.pytest_runtest_logreport(report=report)
            return True
        """
    )
    result = run(
        """
        import pytest

        def before(): pass
        def inside(): pass
        def after(): pass

        @pytest.fixture
        def audited(gil_audit):
            gil_audit(before)
            yield
            gil_audit(after)

        def test_fixture(audited): pass

        def test_again(gil_audit, audited):
            gil_audit(inside)
        """,
        "--gil-report",
    )
    rows = re.findall(r"::(test_\w+) (\w+) ", result.stdout.str())
    once = [("test_fixture", "after"), ("test_fixture", "before")]
    again = [("test_again", what) for what in ("after", "after", "before", "before", "inside", "inside")]
    assert sorted(rows) == sorted(once + again)


@pytest.mark.parametrize("marker", ["releases_gil", "max_gil_hold(0.01)"])
def test_a_coroutine_is_refused_not_judged_by_its_making(run, marker: str) -> None:  # type: ignore[no-untyped-def]
    result = run(f"""
        import pytest, torchgil

        @pytest.mark.{marker}
        async def test_holds():
            torchgil.held.spin(0.3)
    """)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_holds is a coroutine, and a marker judges a call*asyncio.run*"])


STALE = """
    import sys, types
    import torch
    built_for = types.ModuleType("torchgil._built_for")
    built_for.TORCH_VERSION, built_for.PYTHON_VERSION = {!r}, {!r}
    sys.modules["torchgil._built_for"] = built_for
    """
USES_OF_THE_PLUGIN = """
    import pytest, zlib

    def test_plain():
        pass

    @pytest.mark.releases_gil
    def test_marked():
        zlib.compress(bytes(20_000_000))

    @pytest.mark.max_gil_hold(1)
    def test_marked_too():
        pass

    def test_audits(gil_audit):
        assert gil_audit(zlib.compress, bytes(20_000_000)).verdict == "releases"
    """


def test_an_extension_for_another_torch_judges_all_the_same(run, pytester) -> None:  # type: ignore[no-untyped-def]
    """A wheel built for another torch, in an environment whose other plugins import torch first."""
    pytester.makepyfile(stale=STALE.format("1.2.3", f"{sys.version_info[0]}.{sys.version_info[1]}"))
    run(USES_OF_THE_PLUGIN, "-p", "stale", "--gil-report").assert_outcomes(passed=4)


def test_an_unfit_extension_ends_no_run_and_fails_those_that_use_it(run, pytester) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(stale=STALE.format("1.2.3", "2.7"))
    result = run(USES_OF_THE_PLUGIN, "-p", "stale", "--gil-report")
    result.assert_outcomes(passed=1, errors=3)
    mend = "torchgil was built for Python 2.7 but this is Python *; rebuild it, *pip install *"
    result.stdout.fnmatch_lines([f"torchgil cannot be used here: {mend}"] * 3)
    result.stdout.fnmatch_lines(["No test was audited*"])
