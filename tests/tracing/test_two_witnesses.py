"""The trace and the watchdog, which know nothing of each other, agree on every call of the table."""

from __future__ import annotations

import pytest

import torchgil
from tests.tracing.calls import CASES, Case

# Well over the turn of 5 ms that Python code has, well under the calls of 50 ms and more.
LONG_S = 0.03


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.slow else []) for c in CASES]
)
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")  # torch.export's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_watchdog_finds_the_long_holds_that_the_trace_has_and_no_other(case: Case) -> None:
    call = case.prepare()
    # It knocks all the time, so that Python code gives way every few milliseconds in both accounts.
    with torchgil.Watchdog(LONG_S, on_hold=lambda hold: None, mean_gap=0.002) as watchdog:
        report = torchgil.audit(call).report
    traced_s = max(thread.longest_hold_s for thread in report.threads)
    watched_s = max((hold.duration_s for hold in watchdog.holds), default=0.0)
    if watched_s:
        # The watchdog's is a lower bound: what lay before its first look it does not count.
        assert LONG_S < watched_s <= traced_s + 0.005, (case.reason, watchdog.holds, str(report))
    else:
        # Seldom more than LONG_S: the watchdog takes off what the scheduler took from Python code.
        assert traced_s < 2.5 * LONG_S, (case.reason, str(report))
