"""What is tried again is counted and listed, in one process and in several; too much of it fails the run."""

from __future__ import annotations

import pytest

from tests.conftest import run_in_child
from tests.support import retries

SUITE = """
import pytest
from tests.support.retries import once

@pytest.mark.parametrize("needed", [0, 1, 2])
def test_fires(needed):
    tries = []
    def check():
        tries.append(1)
        assert len(tries) > needed, f"missed {len(tries)} of {needed}"
    once(check)
"""


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize(("allowed", "code"), [("3", 0), ("2", 1)])
def test_retries_are_listed_and_too_many_fail_the_run(tmp_path, processes, allowed, code):
    (tmp_path / "test_suite.py").write_text(SUITE)
    child = run_in_child(
        """
        import pytest, sys
        sys.exit(pytest.main(sys.argv[1:]))
        """,
        *("-q", "-p", "no:cacheprovider", "-p", "tests.support.retries", f"-n{processes}"),
        *("--max-retries", allowed, f"--basetemp={tmp_path / 'temporary'}"),
        *(f"--rootdir={tmp_path}", str(tmp_path)),
        check=False,
    )
    assert child.exit_code == code, child
    assert "3 passed" in child.stdout
    assert f"tried again: 3 (at most {allowed} are allowed)" in child.stdout
    for why in ("[1]: missed 1 of 1", "[2]: missed 1 of 2", "[2]: missed 2 of 2"):
        assert f"test_suite.py::test_fires{why}" in child.stdout, child
    assert ("too many retries" in child.stdout) == bool(code)


@pytest.mark.parametrize(("error", "calls"), [(AssertionError, 3), (RuntimeError, 1)])
def test_what_fails_each_time_fails_and_other_errors_are_not_tried_again(monkeypatch, error, calls):
    tries = []

    def check():
        tries.append(1)
        raise error

    # Put back before this test is reported, so that these do not count for the run that it is a part of.
    with monkeypatch.context() as patch:
        patch.setattr(retries, "_of_this_test", [])
        with pytest.raises(error):
            retries.once(check)
    assert len(tries) == calls
