"""The backend "inductor": compile with AOTInductor, then load the package."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchgil._version import __version__
from torchgil.forward._archive import damage
from torchgil.forward._exporting import alone
from torchgil.forward._frozen import FrozenWatch
from torchgil.forward._inputs import plan_inputs
from torchgil.forward._instructions import plan
from torchgil.forward._machine import devices, target
from torchgil.forward._manifest import METADATA_KEY, Manifest
from torchgil.forward._package import PackageForward
from torchgil.forward._unsupported import refuse
from torchgil.forward._weights import weight_of

if TYPE_CHECKING:
    import inspect

    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["compile_forward"]

_log = logging.getLogger("torchgil.forward")


def compile_forward(
    program: ExportedProgram,
    *,
    dynamic_shapes: Any,
    signature: inspect.Signature | None,
    runners: int | None,
    cache_dir: str | os.PathLike[str] | None,
    gil_priority: bool,
    freeze: bool,
    model: nn.Module | None,
) -> PackageForward:
    """Compile an exported program, or take its package from the cache, and load it.

    Args:
        program: The exported program.
        dynamic_shapes: What it was exported with, if known.
        signature: The model's own signature, if there is a model.
        runners: How many calls may run at once.
        cache_dir: Where to keep the package for the next time; `None` keeps none.
        gil_priority: Whether a call asks for the GIL back at once.
        freeze: Whether to fold and pack the weights.
        model: The model, if there is one; a frozen forward looks whether it still has these weights.

    Raises:
        NotImplementedError: As for the backend "graph".
        RuntimeError: There is no C++ compiler, or it failed.
    """
    instructions = plan(program)
    if state := instructions.state:  # what is unsafe between threads is so here too
        refuse(
            f"it writes to {', '.join(map(repr, state))}, and a compiled package has one copy for all calls",
            "use backend='graph', which has sessions",
        )
    watch = None
    if freeze and model is not None:  # before the compiler reads the values
        watch = FrozenWatch(model, {name: weight_of(program, name) for name in instructions.weights})
    manifest = Manifest.of(program, plan_inputs(program, dynamic_shapes, signature), frozen=freeze)
    text = manifest.dumps()

    def load(path: Path) -> PackageForward:
        return PackageForward(
            path, runners=runners, signature=signature, gil_priority=gil_priority, watch=watch
        )

    if cache_dir is None:
        with tempfile.TemporaryDirectory(
            prefix="torchgil-"
        ) as folder:  # the loader unpacks a copy of its own
            return load(_compile(program, text, Path(folder) / "model.pt2", freeze))
    folder_path = Path(cache_dir)
    folder_path.mkdir(parents=True, exist_ok=True)
    kept = folder_path / f"{_key(program, text)}.pt2"
    found = damage(kept) if kept.exists() else ""
    if found:
        warnings.warn(f"nogil: the kept package {kept} is damaged and compiled anew: {found}", stacklevel=3)
    if found or not kept.exists():
        with tempfile.TemporaryDirectory(prefix="torchgil-", dir=folder_path) as folder:
            os.replace(_compile(program, text, Path(folder) / kept.name, freeze), kept)  # whole, or not there
    return load(kept)


def _compile(program: ExportedProgram, manifest: str, path: Path, freeze: bool) -> Path:
    with alone(), warnings.catch_warnings():
        # importing and running Inductor uses what torch itself deprecates: nothing the user can mend
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return _compile_quietly(program, manifest, path, freeze)


def _compile_quietly(program: ExportedProgram, manifest: str, path: Path, freeze: bool) -> Path:
    from torch._inductor import aoti_compile_and_package, config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            "nogil: backend='inductor' needs a C++ compiler and found none; install g++ or clang++, or "
            "name it in CXX. backend='graph' needs none"
        ) from error
    _say(f"compiling with AOTInductor and {compiler}: this can take minutes")
    started = time.perf_counter()
    # Else in a folder that all processes share, under names that do not depend on the weights: of two that
    # compile at once, one could pack what the other has half written, or the other's weights.
    # Inductor freezes nothing while gradients are on, and does not say so.
    with config.patch({"aot_inductor.output_path": str(path.with_suffix(""))}), torch.no_grad():
        aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {METADATA_KEY: manifest}, "freezing": freeze},
        )
    _say(f"compiled in {time.perf_counter() - started:.0f} s")
    return path


def _say(text: str) -> None:
    _log.info(text)
    if sys.stderr.isatty():
        print(f"torchgil: {text}", file=sys.stderr)


def _settings() -> str:
    """What code is compiled for besides its graph: the dtype of factories that name none, and kernels."""
    return str(
        (
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        )
    )


def _key(program: ExportedProgram, manifest: str) -> str:
    """A name for what is compiled: graph, weights, torch and its settings, processor, a GPU's capability."""
    digest = hashlib.sha256()
    for part in (__version__, torch.__version__, _settings(), target(devices(program)), manifest):
        digest.update(part.encode())
    digest.update(str(program.call_spec).encode())  # one graph may return a tensor, a tuple or a dictionary
    for name, module in program.graph_module.named_modules():  # a region, as of no_grad, is one of its own
        if isinstance(module, torch.fx.GraphModule):
            digest.update(f"{name}: {module.graph}".encode())
    digest.update(str([spec.target for spec in program.graph_signature.input_specs]).encode())
    for name, value in sorted({**program.state_dict, **program.constants}.items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(str((value.dtype, value.shape, value.stride(), value.device)).encode())
            raw = value.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten().view(torch.uint8)
            digest.update((ctypes.c_char * raw.nbytes).from_address(raw.data_ptr()))
    return digest.hexdigest()[:32]
