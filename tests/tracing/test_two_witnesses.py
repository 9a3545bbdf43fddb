"""The trace and the watchdog, which know nothing of each other, agree on every call of the table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import torchgil
from tests.support.retries import once
from tests.tracing.calls import CASES, Call, Case
from torchgil import held

# Well over the turn of 5 ms that Python code has, well under the calls of 50 ms and more.
LONG_S = 0.03
# It knocks all the time, so that Python code gives way every few milliseconds in both accounts.
GAP_S = 0.002
# What the watchdog promises to meet (its docstring).
CERTAIN_S = 1.1 * LONG_S + 2 * GAP_S
# By so much one account may be later than the other.
LATE_S = 0.005


@dataclass(frozen=True)
class Account:
    """The longest hold of one call, as each of the two saw it; 0 where the watchdog saw none."""

    traced_s: float
    watched_s: float
    text: str

    def missed(self) -> bool:
        return not self.watched_s and self.traced_s > CERTAIN_S + LATE_S

    def false_alarm(self) -> bool:
        """A hold where the trace has none of half the length: not one seen longer than it was."""
        return self.watched_s > 0 and self.traced_s < LONG_S / 2

    def too_long(self) -> bool:
        """The watchdog's is a lower bound: what lay before its first look it does not count."""
        return self.watched_s > self.traced_s + LATE_S


def account_of(call: Call, threshold_s: float = LONG_S) -> Account:
    with torchgil.Watchdog(threshold_s, on_hold=lambda hold: None, mean_gap=GAP_S) as watchdog:
        # Kept until the watchdog has stopped: to free a result of a million objects is a hold, too.
        audit = torchgil.audit(call)
    traced_s = max(thread.longest_hold_s for thread in audit.report.threads)
    watched_s = max((hold.duration_s for hold in watchdog.holds), default=0.0)
    text = f"trace {traced_s:.4f} s, watchdog {watched_s:.4f} s: {watchdog.holds}\n{audit.report}"
    return Account(traced_s, watched_s, text)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.slow else []) for c in CASES]
)
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")  # torch.export's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_watchdog_finds_the_long_holds_that_the_trace_has_and_no_other(case: Case) -> None:
    first = case.prepare()
    if case.slow:
        assert torchgil.audit(first).verdict == case.verdict, case.reason
    accounts: list[Account] = []

    def it_is_found() -> None:
        # The watchdog's threads want a core in time. Where others have the cores it comes late, misses
        # a hold, or takes its own delay for a part of one.
        account = account_of(first if case.slow or not accounts else case.prepare())
        accounts.append(account)
        assert not account.missed(), f"{case.reason}\n{account.text}"
        assert not account.too_long(), f"{case.reason}\n{account.text}"

    once(it_is_found)
    alarms = [account.text for account in accounts if account.false_alarm()]
    assert not alarms, f"{case.reason}\n" + "\n\n".join(alarms)


def test_a_disagreement_is_found() -> None:
    """The positive controls: a hold that the watchdog is kept from seeing, and one that the trace has not."""
    missed = account_of(lambda: held.spin(2 * LONG_S), threshold_s=10)
    assert missed.missed(), missed.text
    seen = account_of(lambda: held.spin(4 * LONG_S))
    assert not seen.missed(), seen.text
    assert not seen.false_alarm(), seen.text
    elsewhere = Account(0.001, seen.watched_s, "")
    assert elsewhere.false_alarm()
    assert elsewhere.too_long()
