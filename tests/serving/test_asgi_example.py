"""The ASGI example behind a real server, asked by a real client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("uvicorn", reason="the ASGI example is tested with uvicorn: pip install uvicorn")
ROOT = Path(__file__).parent.parent.parent


def ask(port, method, path, data=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, None if data is None else json.dumps(data))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.fixture(params=[[], ["-m", "torchgil", "run", "--gil-priority"]], ids=["plain", "gil_priority"])
def server(request):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    search = os.pathsep.join([str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
    uvicorn = ["-m", "uvicorn", "asgi_app:app", "--port", str(port), "--lifespan", "on"]
    command = [sys.executable, *request.param, *uvicorn]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield port, process
    process.kill()
    process.communicate()


def test_many_clients_get_their_own_rows_and_the_server_ends_cleanly(server):
    port, process = server
    torch.manual_seed(1)
    inputs = [torch.randn(1 + i % 3, 16).tolist() for i in range(40)]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda rows: ask(port, "POST", "/predict", {"rows": rows}), inputs))
    alone = [ask(port, "POST", "/predict", {"rows": [row]})[1]["rows"][0] for row in inputs[2]]
    torch.testing.assert_close(torch.tensor(answers[2][1]["rows"]), torch.tensor(alone), rtol=1e-4, atol=1e-5)
    for rows, (status, answer) in zip(inputs, answers, strict=True):
        assert status == 200
        assert len(answer["rows"]) == len(rows)
    assert ask(port, "POST", "/predict", {"rows": [[1.0]]}) == (
        400,
        {"error": "rows must be lists of 16 finite numbers"},
    )
    for rows in (
        [[10**400] + [0] * 15],
        [[float("nan")] * 16],
        [[float("inf")] * 16],
        "rows",
        [["1"] * 16],
        [],
    ):
        assert ask(port, "POST", "/predict", {"rows": rows})[0] == 400
    assert ask(port, "POST", "/predict", ["no", "object"])[0] == 400
    assert ask(port, "GET", "/stats")[1]["done"] == 43
    assert ask(port, "GET", "/")[0] == 404
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert "Application shutdown complete" in stderr
    assert "Traceback" not in stderr
