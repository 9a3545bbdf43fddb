"""The Ray Serve example on a Ray of its own: two replicas, 200 clients, one replica killed under load."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Ray opens a port of each replica on every interface: give it a network of its own, where that may be done.
ALONE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def alone() -> list[str]:
    try:
        made = subprocess.run([*ALONE, "true"], capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return []
    return ALONE if made else []


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the Ray example needs Ray: pip install 'torchgil[ray]'"
)
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the example ends itself by an alarm")
def test_every_request_is_answered_or_refused_while_a_replica_is_killed(tmp_path):
    data = tmp_path / "ray.json"
    command = [*alone(), sys.executable, "-W", "ignore", str(ROOT / "examples" / "ray_serve.py")]
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [*command, "--seconds", "3", "--limit", "240", "--json", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=270)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    assert child.returncode == 0, output
    for kind, measured in json.loads(data.read_text()).items():
        for load in (measured["quiet"], measured["killed"]):
            assert load["sent"] == load["answered"] + sum(load["refused"].values()), (kind, load)
            assert (load["lost"], load["doubled"], load["wrong"]) == ({}, 0, 0), (kind, load)
        assert measured["quiet"]["answered"] >= 200, kind
        assert measured["quiet"]["replicas"] == 2, kind
        # The positive control: the kill was felt, and what the killed replica had was refused.
        assert sum(measured["killed"]["refused"].values()) > 0, kind
        assert measured["killed"]["answered"] > 0, kind
