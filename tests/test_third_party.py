"""Calls of other people's extensions: the verdict is what a second Python thread sees. An extra:
`make peers` for all of them, `pytest -m third_party` for those that are installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import third_party  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.third_party
@pytest.mark.peer
@pytest.mark.parametrize("row", third_party.ROWS, ids=lambda row: row.name)
def test_the_verdict_is_what_another_thread_sees(row: third_party.Row) -> None:
    if not row.installed:
        pytest.skip(f"pip install {row.package}")
    found = third_party.judge(row)
    # It wants to run 5,000 times a second.
    assert (found["verdict"] == "holds") == (found["turns_per_s"] < 300), found
