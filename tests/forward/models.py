"""All the models that the forward tests run."""

from __future__ import annotations

from tests.forward import graphs, layers
from tests.forward.cases import CASES, Case

__all__ = ["CASES", "Case", "graphs", "layers"]
