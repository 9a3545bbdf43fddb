"""What `torchgil doctor` finds: facts of this machine, Python and torch, and what they call for."""

from __future__ import annotations

from torchgil.doctor._advice import advice, render
from torchgil.doctor._facts import examine

__all__ = ["advice", "examine", "render"]
