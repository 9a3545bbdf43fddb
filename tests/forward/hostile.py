"""Graphs and archives that torch.export did not write: each is an error, or runs.

What it looks for would end the process, so it runs in one of its own; its stderr ends with the seed.
"""

from __future__ import annotations

import copy
import ctypes
import io
import json
import os
import random
import resource
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import torchgil
from torchgil.forward._exporting import load, save

ARGUMENTS = (torch.randn(4, 8), torch.arange(4))
NUMBERS = [0, 1, -1, 2, 3, 100, -100, 2**31, 2**63 - 1, -(2**63), 1.5, True]
LISTS = [[], [0], [1, 2], [-1], [1.5], ["a"], [None]]
OTHERS = [None, "x", b"x", 1j, float("nan"), object(), torch.float32, torch.strided, torch.device("cpu")]
OVERLOADS = [
    getattr(getattr(torch.ops.aten, name), overload)
    for name in ("add", "cat", "split", "unbind", "topk", "sum", "view", "relu_", "index", "sort", "lstm")
    for overload in getattr(torch.ops.aten, name).overloads()
]


class Model(nn.Module):
    """Lists taken apart, several results, sizes in numbers, a region, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv, self.embedding = nn.Linear(8, 8), nn.Conv1d(1, 2, 3), nn.Embedding(10, 8)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Any]:
        a, b = self.linear(x).split(4, -1)
        y = torch.cat([a.relu(), b.softmax(-1)], -1)
        with torch.no_grad():
            z = y.view(y.shape[0], -1) * x.shape[0]
        c = self.conv(z.unsqueeze(1)).mean((1, 2))
        t, e = torch.topk(y, 2), self.embedding(i).sum(-1)
        return {"y": y + 1, "c": c[:1], "t": t.values, "u": y.unbind(1)[0], "e": e, "n": x.shape[0] * 2}


class Writes(Model):
    """The same with buffers that it writes to: in place, through views and from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(2, 8))
        self.register_buffer("part", self.sums[1, 2:6])
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Any]:
        self.sums.index_copy_(0, self.seen.reshape(1) % 2, x[:1])
        self.part.copy_(self.sums[0, 2:6] + 1)
        self.sums.view(-1)[::2].add_(x.sum())
        self.seen.add_(i.shape[0])
        return {**super().forward(x, i), "sums": self.sums, "part": self.part.sum()}


def program(model: type[nn.Module] = Model) -> ExportedProgram:
    sizes = {name: {0: Dim(name, min=2, max=64)} for name in ("x", "i")}
    return torch.export.export(model().eval(), ARGUMENTS, dynamic_shapes=sizes)


def change_graph(program: ExportedProgram, rng: random.Random) -> None:
    """A node takes another argument, one more or one less, or is another op; or the outputs are others."""
    values = [*NUMBERS, *LISTS, *OTHERS]
    nodes = list(program.graph.nodes)
    node = rng.choice([n for n in nodes if n.op == "call_function"])
    before = nodes[: nodes.index(node)]
    args = list(node.args)
    place = rng.randrange(len(args))
    match rng.randrange(7):
        case 0:
            del args[place]
        case 1:
            args.append(rng.choice(values))
        case 2:
            args[place] = rng.choice(values)
        case 3:
            args[place] = rng.choice(before)
        case 4:
            args[place] = [rng.choice(before), rng.choice(values)]
        case 5:
            node.target = rng.choice(OVERLOADS)
        case 6:
            node, outputs = nodes[-1], list(nodes[-1].args[0])
            outputs[rng.randrange(len(outputs))] = rng.choice([rng.choice(values), rng.choice(nodes)])
            args = [outputs]
    node.args = tuple(args)


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a JSON text that is no container."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, *path, key)
    else:
        yield path


def changed(text: Any, rng: random.Random) -> Any:
    """The same JSON text with another value somewhere."""
    text = copy.deepcopy(text)
    *path, last = rng.choice(list(leaves(text)))
    holder = text
    for key in path:
        holder = holder[key]
    holder[last] = rng.choice([*NUMBERS, *LISTS, None, "", "x", "load", "torch.ops.aten.add.Tensor"])
    return text


def change_text(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in one of the archive's texts, under right checksums."""
    rewritten = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(rewritten, "w") as new:
        texts = {name: json.loads(old.read(name)) for name in old.namelist() if name.endswith(".json")}
        texts = changed(texts, rng)
        for name in old.namelist():
            new.writestr(name, json.dumps(texts[name]) if name in texts else old.read(name))
    return rewritten.getvalue()


def crash(data: bytes, rng: random.Random) -> bytes:
    """The positive control."""
    return ctypes.string_at(rng.randrange(8))


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {"text": change_text, "crash": crash}


def run(kind: str, count: int) -> None:
    """Builds and calls `count` programs that were changed so; prints how often each outcome was seen."""
    if "SANITIZE" not in os.environ:  # whose shadow is larger
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    torch.set_num_threads(1)
    whole = program(Writes if kind == "state" else Model)
    saved = save(whole)
    seen: Counter[str] = Counter()
    for seed in range(count):
        print(f"{kind}, seed {seed}", file=sys.stderr, flush=True)
        rng = random.Random(seed)
        try:
            if kind in ("graph", "state"):
                other = copy.deepcopy(whole)
                change_graph(other, rng)
            else:
                other = load(CHANGES[kind](saved, rng))
            call = torchgil.nogil(other)
            if kind == "state":
                call = call.session()
            for _ in range(2):
                call(*ARGUMENTS)
        except Exception as error:  # any error will do
            seen[type(error).__name__] += 1
        else:
            seen["a result"] += 1
    print(json.dumps(seen))
