"""Runs something once a module is imported, now if it already is.

torchgil must not import torch for the pytest plugin's sake, nor torch._dynamo (two
seconds) for torch.compile's. Yet both must find what torchgil registers with them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["unregistered", "when_imported"]

unregistered: list[str] = []  # why torchgil's ops could not be registered with the torch that is loaded


def when_imported(name: str, callback: Callable[[], None]) -> None:
    """Calls back right after the module ``name`` is imported, in the thread that imports it."""
    if name in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _Finder(name, callback))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self._name = name
        self._callback = callback
        self._asking = _Asking()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name or self._asking.here:
            return None
        self._asking.here = True  # the real finders answer
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.here = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def imported(self) -> None:
        """The module is there. Not before: many only ask whether it could be imported."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self._callback()


class _Asking(threading.local):
    here = False


class _Loader(importlib.abc.Loader):
    """The module's own loader, and one thing after it."""

    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        # Whoever only looks for the module asks its loader for its data, source or code, if it has them.
        if name == "_loader":  # not there yet, in a copy
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks as if this loader had never been.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._finder.imported()
