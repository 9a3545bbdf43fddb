"""What traces and watches checks its arguments when they are given, and says which is wrong."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy
import pytest

import torchgil
from torchgil._wakeup import wakeup_latency

NAN, INF = math.nan, math.inf
NO_NUMBER = ["a", True, [1], object(), NAN]


async def awaited(hold):
    pass


CASES = [
    (torchgil.trace, "max_events", [*NO_NUMBER, None, 0, -1, 1.0, 2**32 + 1], ValueError),
    (torchgil.trace, "keep", ["last", None, 1], ValueError),
    (torchgil.trace, "ops", ["no", None, 2], TypeError),
    (torchgil.trace, "forced_switches", ["no", None, 2], TypeError),
    (torchgil.Watchdog, "threshold", [*NO_NUMBER, None, 0, -1, 0.001, 3601, INF], ValueError),
    (torchgil.Watchdog, "on_hold", ["f", 3, awaited], ValueError),
    (torchgil.Watchdog, "max_holds", [*NO_NUMBER, None, 0, -1, 1.0], ValueError),
    (torchgil.Watchdog, "mean_gap", [*NO_NUMBER, 0, -1, 61, INF], ValueError),
    (torchgil.GilMonitor, "interval", [*NO_NUMBER, None, 0, -1, 61, INF], ValueError),
    (torchgil.GilMonitor, "max_window", [*NO_NUMBER, None, 0, -1, 86401, INF], ValueError),
    (torchgil.GilMonitor().window, "seconds", [*NO_NUMBER, None, 0, -1, 301, INF], ValueError),
    (torchgil.trace().report, "last", [*NO_NUMBER, 0, -1, 10**10, INF, -INF], ValueError),
    (wakeup_latency, "samples", [*NO_NUMBER, None, 0, -1, 1.0, 100_001], ValueError),
]


@pytest.mark.parametrize(
    ("call", "name", "value", "kind"),
    [(call, name, value, kind) for call, name, values, kind in CASES for value in values],
)
def test_an_argument_that_cannot_be_meant_is_refused_by_its_name(call, name, value, kind):
    with pytest.raises(kind, match=name):
        call(**{name: value})


def test_numbers_of_any_kind_are_taken():
    torchgil.trace(max_events=numpy.int64(5), ops=1)
    torchgil.Watchdog(Fraction(1, 2), max_holds=numpy.int32(3), mean_gap=numpy.float32(0.5))
    monitor = torchgil.GilMonitor(numpy.float32(0.5), max_window=5)
    assert (monitor.interval, monitor.max_window) == (0.5, 5.0)
    with torchgil.trace() as t:
        pass
    assert t.report(last=10**9).wall_s == t.report().wall_s
