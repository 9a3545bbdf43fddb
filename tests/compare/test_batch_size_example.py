"""The example that traces why a large batch can lose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_one_batch_takes_all_in_flight_unless_it_is_kept_to_its_workers_share():
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "examples/batch_size.py", "--seconds", "0.5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert child.returncode == 0, child.stderr
    _, *rows = child.stdout.splitlines()
    largest = [max(map(int, re.findall(r"(\d+):", row))) for row in rows]
    assert largest[0] == 1
    assert 4 < largest[1] <= 8
    assert largest[2] <= 4
