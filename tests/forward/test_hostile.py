"""Changed graphs, and saved forwards that are damaged or forged: an error each time, never a signal."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import signal
import zipfile
from io import BytesIO
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

import torchgil
from tests.conftest import run_in_child
from tests.forward import hostile
from torchgil.forward._exporting import load, save

EXAMPLES = int(os.environ.get("TORCHGIL_STRESS_EXAMPLES", "30"))
RUN = "import sys; from tests.forward.hostile import run; run(sys.argv[1], int(sys.argv[2]))"


@pytest.mark.parametrize("kind", ["graph", "state", "text"])
def test_what_torch_export_did_not_write_is_an_error_or_runs(kind: str) -> None:
    child = run_in_child(RUN, kind, str(EXAMPLES), timeout=280 + EXAMPLES)
    seen = json.loads(child.stdout.splitlines()[-1])
    assert sum(seen.values()) == EXAMPLES
    assert len(seen) > 3, seen
    assert "SystemError" not in seen


def test_a_crash_would_be_seen() -> None:
    child = run_in_child(RUN, "crash", "3", check=False)
    assert child.exit_code == -signal.SIGSEGV
    assert "crash, seed 0" in child.stderr


def flip(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


@pytest.fixture(scope="module")
def saved() -> bytes:
    return save(hostile.program())


@pytest.fixture
def program(saved: bytes) -> ExportedProgram:
    return load(saved)


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_archive_is_called_so(saved: bytes, damage: Any) -> None:
    errors = []
    for seed in range(EXAMPLES):
        try:
            load(damage(saved, random.Random(seed)))
        except Exception as error:
            errors.append(error)
    # The rest is torch's: a cut just behind the archive that is in it, a bit that means little or nothing.
    assert sum("the saved forward is damaged" in str(error) for error in errors) > EXAMPLES * 3 / 4
    assert damage is flip or len(errors) == EXAMPLES


@pytest.mark.parametrize(
    ("name", "args", "error", "message"),
    [
        (
            "relu",
            (),
            ValueError,
            r"argument 'self' is missing \(while nogil read node 'relu' \(.*hostile.py:",
        ),
        ("relu", ([1],), TypeError, r"expected a number, got \[1\] \(while nogil read node 'relu' \("),
        ("getitem", (), ValueError, r"cannot read node 'getitem_.*was the graph changed by hand\?"),
        ("output", (None,), ValueError, r"cannot read node 'output': TypeError: .* is not iterable"),
    ],
)
def test_an_error_names_the_node(
    program: ExportedProgram, name: str, args: Any, error: type[Exception], message: str
) -> None:
    node = next(node for node in program.graph.nodes if node.name.startswith(name))
    node.args = args
    with pytest.raises(error) as raised:
        torchgil.nogil(program)
    notes = [f"({note})" for note in getattr(raised.value, "__notes__", ())]
    assert re.search(message, " ".join([str(raised.value), *notes]), re.DOTALL), raised.value


def test_an_item_that_a_list_had_not_is_asked_for_when_it_runs(program: ExportedProgram) -> None:
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.split.Tensor):
        item = next(iter(node.users))
        item.args = (node, 2**62)  # of two: a slot for each up to it would fill the memory
    forward = torchgil.nogil(program)
    with pytest.raises(IndexError, match="out of range for 2 values"):
        forward(*hostile.ARGUMENTS)


def test_another_bit_in_a_saved_weight_is_damage(program: ExportedProgram) -> None:
    data = pickle.dumps(torchgil.nogil(program))
    start = data.index(b"PK\x03\x04")  # the program's own archive
    with zipfile.ZipFile(BytesIO(data[start:])) as archive:
        weight = next(info for info in archive.infolist() if info.filename.endswith("/weight_0"))
    damaged = bytearray(data)
    damaged[start + weight.header_offset + weight.compress_size // 2] ^= 1
    assert pickle.loads(data)(*hostile.ARGUMENTS)["n"] == 8
    with pytest.raises(ValueError, match=r"the saved forward is damaged: the checksum of .*weight_0 differs"):
        pickle.loads(bytes(damaged))
