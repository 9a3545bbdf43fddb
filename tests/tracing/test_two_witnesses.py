"""The trace and the watchdog, which know nothing of each other, agree on every call of the table."""

from __future__ import annotations

import pytest

import torchgil
from tests.tracing.calls import CASES, Call, Case

# Well over the turn of 5 ms that Python code has, well under the calls of 50 ms and more.
LONG_S = 0.03


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.slow else []) for c in CASES]
)
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")  # torch.export's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_watchdog_finds_the_long_holds_that_the_trace_has_and_no_other(case: Case) -> None:
    # The watchdog's threads want a core in time. Where others have the cores it comes late, and takes
    # that for a longer hold: what is so each time is a disagreement, what is so once is not.
    disagreements = []
    call = case.prepare()
    if case.slow:
        assert torchgil.audit(call).verdict == case.verdict, case.reason
    for attempt in range(3):
        disagreement = disagree(call if case.slow or not attempt else case.prepare())
        if disagreement is None:
            return
        disagreements.append(disagreement)
    pytest.fail(f"{case.reason}\n" + "\n\n".join(disagreements))


def disagree(call: Call) -> str | None:
    """How the two accounts of one call differ; None where they agree."""
    # It knocks all the time, so that Python code gives way every few milliseconds in both accounts.
    with torchgil.Watchdog(LONG_S, on_hold=lambda hold: None, mean_gap=0.002) as watchdog:
        # Kept until the watchdog has stopped: to free a result of a million objects is a hold, too.
        audit = torchgil.audit(call)
    traced_s = max(thread.longest_hold_s for thread in audit.report.threads)
    watched_s = max((hold.duration_s for hold in watchdog.holds), default=0.0)
    # The watchdog's is a lower bound: what lay before its first look it does not count. Where it saw
    # none the trace's is seldom over LONG_S: it takes off what the scheduler took from Python code.
    agree = LONG_S < watched_s <= traced_s + 0.005 if watched_s else traced_s < 2.5 * LONG_S
    return None if agree else f"trace {traced_s:.4f} s, watchdog {watchdog.holds}\n{audit.report}"


def test_a_disagreement_is_found() -> None:
    """The positive control: a hold that the watchdog is kept from seeing."""
    with torchgil.Watchdog(10, on_hold=lambda hold: None) as watchdog:
        report = torchgil.audit(torchgil.held.spin, 4 * LONG_S).report
    assert watchdog.holds == []
    assert max(thread.longest_hold_s for thread in report.threads) > 2.5 * LONG_S
