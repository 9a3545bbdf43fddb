"""What torch means for threads here: in a process of its own, so that `torchgil doctor` needs no torch.

A torch that cannot be imported, or that ends the process, is a fact like another then.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torchgil._files import write_json

__all__ = ["ask", "openmp_runtimes", "tell"]

_LIMIT_S = 120  # an import of torch takes a second or two


# The child looks for modules where this process does. With `-m` it would look in the current folder first,
# where a source tree of torch may lie.
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from torchgil.doctor import _torch_facts
_torch_facts.tell(sys.argv[2])
"""


def ask() -> dict[str, Any]:
    """The facts, from a child; "torch_error": why there are none, or why torchgil cannot use that torch."""
    # The child writes to a file, since what it imports may write to the streams, close them, or leave a
    # process behind that keeps them open.
    with tempfile.TemporaryDirectory() as folder:
        told, said = Path(folder) / "told", Path(folder) / "said"
        command = [sys.executable, "-W", "ignore", "-c", _CHILD, json.dumps(sys.path), str(told)]
        quiet = subprocess.DEVNULL
        try:
            with said.open("wb") as stderr:
                child = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=stderr, timeout=_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            why = f"it took more than {_LIMIT_S} s" if isinstance(error, subprocess.TimeoutExpired) else error
            return {**_NOTHING, "torch_error": f"torch could not be looked at: {why}"}
        if told.exists():
            return {**_NOTHING, **json.loads(told.read_text())}
        last = (said.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    why = f"a process that imports torch ended with exit code {child.returncode}: {last}"
    return {**_NOTHING, "torch_error": why}


def tell(path: str) -> None:
    """Writes the facts of this process there, all of them or none."""
    write_json(path, look())


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
