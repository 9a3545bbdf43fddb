"""What compiled code is made for: the processor and, of a GPU, its compute capability."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.utils._pytree as pytree

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["check_machine", "compute_capability", "devices", "target"]


def devices(program: ExportedProgram) -> set[torch.device]:
    """The devices that the program has tensors on."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    values = pytree.tree_leaves([node.meta.get("val") for graph in graphs for node in graph.nodes])
    return {value.device for value in values if isinstance(value, torch.Tensor)}


def compute_capability(device: torch.device) -> str:
    """As AOTInductor writes it into a package: ``90`` for 9.0, AMD's by name; "" where the kind has none."""
    if device.type == "cpu":
        return ""
    if device.type == "cuda" and torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":", 1)[0]
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return str(major * 10 + minor)
    ask = getattr(torch.get_device_module(device), "get_device_capability", None)
    return "" if ask is None else str(ask(device))


def target(used: Iterable[torch.device]) -> str:
    """What machine code for tensors on these devices depends on: two machines with one text can share it."""
    others = sorted({str(device): device for device in used if device.type not in ("cpu", "meta")}.items())
    capabilities = [f"{name} {compute_capability(device)}" for name, device in others]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *capabilities])


def check_machine(path: str, metadata: Mapping[str, str]) -> None:
    """Refuse a package that was compiled for another machine than this one.

    Args:
        path: Its file, for the error.
        metadata: What AOTInductor wrote into it.

    Raises:
        RuntimeError: It was compiled for another device, system or processor; the message says which.
    """
    device = metadata.get("AOTI_DEVICE_KEY", "cpu")
    if device != "cpu" and not getattr(torch, device).is_available():
        raise RuntimeError(
            f"load_package: {path!r} was compiled for {device}, and there is no such device here"
        )
    for key, here in (("AOTI_PLATFORM", sys.platform), ("AOTI_MACHINE", platform.machine())):
        if metadata.get(key, here) != here:
            raise RuntimeError(f"load_package: {path!r} was compiled for {metadata[key]}, and this is {here}")
    instructions = metadata.get("AOTI_CPU_ISA", "").split()
    if "AVX512" in instructions and torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise RuntimeError(f"load_package: {path!r} was compiled for AVX-512, which this processor lacks")
    made_for = metadata.get("AOTI_COMPUTE_CAPABILITY", "")
    if device != "cpu" and made_for:
        here = compute_capability(torch.device(device))
        if not _runs(made_for, here):
            raise RuntimeError(
                f"load_package: {path!r} was compiled for a {device} device of compute capability "
                f"{made_for}, and this one has {here}; compile it here"
            )


def _runs(made_for: str, here: str) -> bool:
    """NVIDIA's code runs on later devices of the same major version; of others only the same is known to."""
    if made_for.isdecimal() and here.isdecimal():
        return int(made_for) // 10 == int(here) // 10 and int(made_for) <= int(here)
    return made_for == here
