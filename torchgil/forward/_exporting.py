"""What torchgil asks of torch.export: one call at a time, and beside threads that serve the model.

torch.export is not made for two threads. It patches builtins and `nn.Module` while it traces, and keeps its
deserialiser, and the reducers it saves with, in globals of the process: so one lock is before it. It also
swaps the parameters of the module it traces, which others may be calling meanwhile: so it is given a copy of
the structure that shares the tensors.
"""

from __future__ import annotations

import copy
import gc
import inspect
import io
import os
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from torchgil.forward._archive import damage
from torchgil.forward._assignments import inner_assignments, refuse_lost
from torchgil.forward._examples import merged_arguments, separate
from torchgil.forward._torch_compat import refusal_of

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["alone", "exported", "load", "save", "structural_copy"]

# reentrant: what is copied or traced may hold a nogil forward, which is copied by way of save and load
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # in a forked child nobody is left to release the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def alone() -> Iterator[None]:
    """Nothing else of torchgil's exports, saves, loads or compiles a program inside the block."""
    with _lock:
        yield


def save(program: ExportedProgram) -> bytes:
    """A program and its weights, as :func:`torch.export.save` writes them."""
    buffer = io.BytesIO()
    with alone():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def load(data: bytes) -> ExportedProgram:
    """The program that `save` wrote.

    Raises:
        ValueError: It is not whole any more.
    """
    if found := damage(io.BytesIO(data)):
        raise ValueError(f"nogil: the saved forward is damaged: {found}; pickle it again, or copy it again")
    with alone(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.9, of its own buffer
        return torch.export.load(io.BytesIO(data))


def exported(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    dynamic_shapes: Any,
) -> tuple[ExportedProgram, inspect.Signature | None]:
    """The exported program of a model, and the model's signature where there is a module.

    Raises:
        NotImplementedError: This release of torch cannot export the model, and a later one can.
        TypeError: `model` is neither a module nor an exported program.
        ValueError: An exported program came with `dynamic_shapes`, or was exported with one tensor for two
            arguments.
    """
    if isinstance(model, torch.export.ExportedProgram):
        if dynamic_shapes is not None:
            raise ValueError(
                "nogil: an ExportedProgram has its dynamic shapes already; leave out dynamic_shapes, "
                "or pass the module"
            )
        if merged := merged_arguments(model):
            raise ValueError(
                f"nogil: {merged} were one tensor when the program was exported, and torch.export took them "
                "for one: whatever came for the others would be ignored. Export it with different tensors, "
                "or pass the module"
            )
        return model, None
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"nogil: model must be an nn.Module or an ExportedProgram, got {type(model).__name__}"
        )
    if not isinstance(args, tuple):
        raise TypeError(f"nogil: args must be a tuple of the example arguments, got {type(args).__name__}")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise TypeError(f"nogil: kwargs must be a dict of the example arguments, got {type(kwargs).__name__}")
    args, kwargs = separate((args, kwargs), _tensors(model))
    why = None
    try:
        subject = structural_copy(model)
    except ValueError as error:
        subject, why = model, str(error)
    with alone():
        program = None
        if why is None:
            program = _export(subject, args, kwargs, dynamic_shapes)
            if weight := _met_unswapped(program, model):
                program, why = None, f"its forward takes {weight!r} from a closure, a global or a list"
        if program is None:
            warnings.warn(
                f"nogil: the model itself is exported, and not a copy of it, because {why}. "
                "No other thread may call it until this is done",
                stacklevel=3,
            )
            program = _export(model, args, kwargs, dynamic_shapes)
    signature = inspect.signature(model.forward)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]  # to pickle
    return program, inspect.Signature(bare)


def _export(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> ExportedProgram:
    with inner_assignments(model) as assigned:
        try:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
        except ValueError as error:
            if why := refusal_of(error):
                raise NotImplementedError(f"nogil: {why}") from error
            raise
    refuse_lost(program, assigned)
    return program


def structural_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules and of all they hold but the tensors, which are the model's own.

    Raises:
        ValueError: There can be none, or none that is faithful; the message names the attribute.
    """
    for attempt in range(3):  # a forward in another thread may write to an attribute while it is copied
        try:
            return _copy_once(model)
        except ValueError:
            if attempt == 2:
                raise
    raise AssertionError("the last attempt returns or raises")


def _copy_once(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(model)}
    try:
        twin = copy.deepcopy(model, memo.copy())
    except Exception as error:  # whatever an attribute of the user's raises
        raise ValueError(f"{_culprit(model, memo)} cannot be copied ({error})") from error
    copies = dict(twin.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        double = copies.get(path)
        if double is None:
            raise ValueError(f"a copy of it has no {path!r}")
        for name in vars(module):
            if name not in vars(double):
                raise ValueError(f"a copy of it has no {_dotted(path, name)!r}")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in vars(module)[kind].items():
                if vars(double)[kind].get(name) is not tensor:
                    raise ValueError(f"a copy of it has another {_dotted(path, name)!r}")
    _give_each_name_a_module(twin, memo, set())
    return twin


def _give_each_name_a_module(module: nn.Module, memo: dict[int, Any], met: set[int]) -> None:
    """A module that has two names becomes two, of the same tensors.

    Where one has two names, torch.export keeps account of all module calls of the process, by patching
    `nn.Module`, and fails over those of other threads.
    """
    for name, child in vars(module)["_modules"].items():
        if child is not None:
            if id(child) in met:
                child = vars(module)["_modules"][name] = copy.deepcopy(child, memo.copy())
            met.add(id(child))
            _give_each_name_a_module(child, memo, met)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Every tensor that a copy would reach: parameters, buffers, and what plain attributes hold."""
    atoms = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.FrameType)
    seen: dict[int, Any] = {}
    left: list[Any] = [model]
    while left:
        value = left.pop()
        if id(value) not in seen and not isinstance(value, atoms):
            seen[id(value)] = value
            if not isinstance(value, torch.Tensor):
                left.extend(gc.get_referents(value))
    return [value for value in seen.values() if isinstance(value, torch.Tensor)]


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """The attribute that cannot be copied."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(value, {**memo, **{id(m): m for m in model.modules()}})
            except Exception:  # whatever an attribute of the user's raises
                return repr(_dotted(path, name))
    return type(model).__name__


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _met_unswapped(program: ExportedProgram, model: nn.Module) -> str | None:
    """The weight of the model that the trace met where the copy had none to swap for it."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    weights = {tensor.data_ptr(): name for name, tensor in tensors if _has_data(tensor)}
    for name, value in program.constants.items():
        if "lifted_tensor_" in name and _has_data(value) and value.data_ptr() in weights:
            return weights[value.data_ptr()]
    return None


def _has_data(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type != "meta"
        and value.numel() > 0
    )
