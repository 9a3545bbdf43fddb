"""The published figures are those of the kept results."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_of_budgets_is_made_from_the_results_alone(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import plots

    results = plots.load()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == plots.page(results), "run benchmarks/plots.py"
    named = {budget.benchmark for budget in plots.BUDGETS}
    assert named <= results.keys()
    for budget, figure in plots.measure(results):
        assert figure["min"] <= figure["median"] <= figure["max"], budget.what
