"""The published figures are those of the kept results."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_what_the_documents_show_is_what_was_kept(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import plots

    results = plots.load()
    for path, text in plots.documents(results).items():
        assert path.read_text() == text, f"{path.name}: run benchmarks/plots.py"
    named = {budget.benchmark for budget in plots.BUDGETS}
    assert named <= results.keys()
    for budget, figure in plots.measure(results):
        assert figure["min"] <= figure["median"] <= figure["max"], budget.what
