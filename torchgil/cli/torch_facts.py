"""What torch means for threads here: in a process of its own, so that `torchgil doctor` needs no torch.

A torch that cannot be imported, or that ends the process, is a fact like another then.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["ask", "openmp_runtimes"]

_LIMIT_S = 120  # an import of torch takes a second or two


def ask() -> dict[str, Any]:
    """The facts, from a child; "torch_error": why there are none, or why torchgil cannot use that torch."""
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {**_NOTHING, "torch_error": f"torch could not be looked at: {error}"}
    try:
        return {**_NOTHING, **json.loads(child.stdout.splitlines()[-1])}
    except (IndexError, ValueError):
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        why = f"a process that imports torch ended with exit code {child.returncode}: {last}"
        return {**_NOTHING, "torch_error": why}


_NOTHING: dict[str, Any] = {
    "torch": None,
    "torch_error": None,
    "intra_op_threads": None,
    "inter_op_threads": None,
    "openmp_runtimes": [],
    "ops_seen": None,
}


def look() -> dict[str, Any]:
    """The facts of this process, which imports torch."""
    try:
        import torch
    except ImportError as error:
        return {"torch_error": f"there is no torch here: {error}"}
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "intra_op_threads": torch.get_num_threads(),
        "inter_op_threads": torch.get_num_interop_threads(),
        "openmp_runtimes": openmp_runtimes(_own_maps()),
    }
    try:
        from torchgil.ops import released
        from torchgil.tracing import trace
    except ImportError as error:
        return {**facts, "torch_error": str(error)}
    ones = torch.ones(4)
    with trace() as t:
        released.add(ones, ones)
    return {**facts, "ops_seen": any(op.name == "torchgil::add" for op in t.report().ops)}


def _own_maps() -> str:
    try:
        return Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return ""


def openmp_runtimes(maps: str) -> list[str]:
    """Files of the OpenMP runtimes among the mapped ones, from the text of /proc/self/maps.

    >>> openmp_runtimes("7f00-7f01 r-xp 00000000 fe:00 12   /usr/lib/libgomp.so.1.0.0")
    ['/usr/lib/libgomp.so.1.0.0']
    """
    return sorted(set(re.findall(r"\s(/\S*/lib(?:gomp|iomp5|omp)\b[^/\s]*\.so[^/\s]*)", maps)))


if __name__ == "__main__":
    print(json.dumps(look()))
