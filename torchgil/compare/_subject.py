"""The user's model, loaded from its name: the same way in every process of a comparison."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

__all__ = ["Subject", "load", "split"]

BUILTIN = "torchgil.compare._builtin:transformer"


@dataclass(frozen=True)
class Subject:
    """What is measured: a callable or module, and the inputs of one request."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def request(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs as one pytree."""
        return self.args, self.kwargs

    def call(self) -> Any:
        """Answer one request."""
        return self.target(*self.args, **self.kwargs)


def split(name: str) -> tuple[str, str]:
    """The module, or the file, and the factory.

    Raises:
        ValueError: The name has another form, or there is no such file.
    """
    module_name, colon, factory_name = name.rpartition(":")
    if not colon or not module_name or not factory_name:
        raise ValueError(f"name the factory as MODULE:FACTORY or FILE.py:FACTORY, got {name!r}")
    if module_name.endswith(".py") and not Path(module_name).is_file():
        raise ValueError(f"there is no file {module_name} (the current folder is {Path.cwd()})")
    return module_name, factory_name


def load(name: str) -> Subject:
    """Call the factory `MODULE:FACTORY` or `FILE.py:FACTORY`.

    Args:
        name: The module is looked for from the current directory on. The factory takes nothing and returns
            `(callable or nn.Module, example_inputs)`; inputs are a tuple of arguments, a dict of keyword
            arguments, or one argument.

    Raises:
        ValueError, TypeError: A name or a return value of another form; otherwise what the factory raises.

    Example:
        >>> load("torchgil.compare._builtin:transformer").call().shape
        torch.Size([1, 50, 512])
    """
    module_name, factory_name = split(name)
    module = _module(module_name)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        others = [n for n, f in vars(module).items() if getattr(f, "__module__", None) == module.__name__]
        there = f"; it has {', '.join(others[:10])}" if others else ""
        is_not = f"{module_name} has no {factory_name}" if factory is None else f"{name} cannot be called"
        raise ValueError(f"{is_not}{there}")
    made = factory()
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        raise TypeError(
            f"{name} must return (callable or nn.Module, example_inputs), got {type(made).__name__}"
        )
    target, inputs = made
    if isinstance(target, torch.nn.Module):
        target.eval()
    if isinstance(inputs, dict):
        return Subject(target, (), inputs)
    return Subject(target, inputs if isinstance(inputs, tuple) else (inputs,), {})


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # of something that it imports
            raise ModuleNotFoundError(
                f"no module {error.name} is installed or lies in {Path.cwd()}: change to the folder that it "
                "lies in, or name its file, as in FILE.py:FACTORY",
                name=error.name,
            ) from error
    path = Path(name).resolve()
    stem = path.stem
    known = sys.modules.get(stem)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() == path:
            return known
        raise ValueError(f"{name} has the name of a module that is there already, {known}; rename the file")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # what lies beside it, and itself in a spawned process
    spec = importlib.util.spec_from_file_location(stem, name)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    spec.loader.exec_module(module)
    return module
