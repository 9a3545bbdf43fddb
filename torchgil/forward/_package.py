"""AOTInductor packages that run in parallel, and without the GIL."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import weakref
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
import torch.utils._pytree as pytree

from torchgil._checks import flag
from torchgil._priority import priority_unavailable
from torchgil._threads import usable_cores
from torchgil._torch_half import C
from torchgil.forward._archive import damage
from torchgil.forward._forward import Forward
from torchgil.forward._graph import add_checks
from torchgil.forward._machine import check_machine
from torchgil.forward._manifest import METADATA_KEY, Manifest
from torchgil.forward._options import check_path, check_runners
from torchgil.forward._structure import Arguments, Results, leaf_names
from torchgil.forward._torch_compat import LOADS_FOLDERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchgil.forward._frozen import FrozenWatch

__all__ = ["PackageForward", "load_package"]

_FOLDER = "data/aotinductor/"
_LOADED = (_FOLDER + "model/", "data/constants/")  # the latter holds objects other than tensors


def load_package(
    path: str | os.PathLike[str], *, runners: int | None = None, gil_priority: bool = True
) -> PackageForward:
    """Load an AOTInductor package (``.pt2``) that runs without the GIL, in as many threads as it has runners.

    A package is native code, and becomes part of this process: load only what you trust. Its checksums are
    compared before anything of it is loaded. It holds weights of its own, which later changes of the model's
    do not reach: on disk in the package and, while it is loaded, unpacked in a temporary folder; in memory
    once, however many the runners, and once more in the pages of that file, which the system takes back
    where memory is short (202 MB of weights: 204 MB, and 203 MB of file; 209 and 203 with four runners).

    Args:
        path: What :func:`torch._inductor.aoti_compile_and_package` wrote.
        runners: How many calls may run at once; they share one copy of the constants. By default the usable
            cores. Further callers wait, without the GIL.
        gil_priority: A call that ends beside a thread busy in Python asks for the GIL back at once, not
            after the switch interval: one forced switch per call (:func:`torchgil.gil_priority`).

    Returns:
        A :class:`torchgil.Forward`: call it with the model's arguments. A package that
        :func:`torchgil.nogil` made checks its arguments in full; of others only the structure, the number
        and the device of the inputs are known.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: An argument is of another type; the message names it.
        ValueError: It is no complete package, or a damaged one, or one without its weights, or `runners` is
            less than one.
        RuntimeError: It was compiled for another device or machine.

    Example:
        >>> import torchgil
        >>> torchgil.load_package("model.pt2")
        Traceback (most recent call last):
        FileNotFoundError: load_package: there is no file 'model.pt2'
    """
    return PackageForward(path, runners=runners, gil_priority=gil_priority)


class PackageForward(Forward):
    """What :func:`load_package`, and :func:`torchgil.nogil` for the backend ``"inductor"``, return.

    Attributes:
        path: Where the package was loaded from.
        metadata: What the package says of itself.
        runners: How many calls may run at once.
        checked: Whether dtypes, sizes and constants of the arguments are known, and checked.
        frozen: Whether :func:`torchgil.nogil` compiled it with ``freeze=True``.
        backend: ``"inductor"``.
    """

    backend: Literal["inductor"] = "inductor"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        runners: int | None = None,
        signature: Any = None,
        gil_priority: bool = True,
        watch: FrozenWatch | None = None,
    ) -> None:
        check_path("load_package", "path", path)
        gil_priority = flag("load_package: gil_priority", gil_priority)
        self.runners = check_runners("load_package", usable_cores() if runners is None else runners)
        self.path = os.fspath(path)
        self.metadata = _inspect(Path(path))
        self._package = _load(self.path, self.runners)
        self._package.gil_priority = gil_priority and priority_unavailable() is None
        in_spec, out_spec = map(pytree.treespec_loads, self._package.call_spec())
        text = self.metadata.get(METADATA_KEY)
        self.checked = text is not None
        self.frozen = False
        self._watch = watch
        names: Sequence[str] = ()
        outputs: Sequence[tuple[bool, Any]] = [(False, None)] * out_spec.num_leaves
        self._numbers: list[int] = []
        if text is not None:
            try:
                manifest = Manifest.loads(text)
                add_checks(self._package, manifest.inputs)
                self._package.set_formats([getattr(torch, name) for name in manifest.formats])
            except Exception as error:  # another's text may hold anything
                raise ValueError(
                    f"load_package: what {self.path!r} says of its arguments cannot be read: {error}; make "
                    "it anew"
                ) from error
            self.frozen = manifest.frozen
            names = manifest.inputs.argument_names
            outputs = [(kind == "constant", value) for kind, value in manifest.outputs]
            self._numbers = [i for i, (kind, _) in enumerate(manifest.outputs) if kind == "number"]
        self._leaves = leaf_names(in_spec, names)
        self._flatten = Arguments(in_spec, names, signature).flatten
        self._constants = {i: value for i, (known, value) in enumerate(outputs) if known}
        self._unflatten = Results(out_spec, [(False, None)] * out_spec.num_leaves).unflatten

    # GIL: held on entry, released once while the package runs or waits for a runner.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._watch is not None:
            self._watch.check()
        flat = self._flatten(args, kwargs)
        values = self._run(flat)
        if self._numbers:
            with torch._C._DisableTorchDispatch():  # a fake mode has no values
                for place in self._numbers:  # a package hands numbers out as tensors
                    values[place] = values[place].item()
        for place, value in self._constants.items():
            values[place] = value
        return self._unflatten(values)

    def _run(self, flat: Sequence[Any]) -> list[Any]:
        if self.checked:
            return list(self._package.run(flat))
        tensors = self._tensors(flat)
        try:
            return list(self._package.run_unchecked(tensors))
        except RuntimeError as error:
            if (wanted := re.search(r"inputs vector size to be (\d+)", str(error))) is None:
                raise
            # Only the package's code knows how many of the arguments are tensors, and nobody which.
            kinds = [type(value).__name__ for value in flat]
            given = ", ".join(map("{} is of type {}".format, self._leaves, kinds))
            raise TypeError(
                f"load_package: {self.path!r} takes {wanted[1]} tensors, and of the arguments {len(tensors)} "
                f"are ({given})"
            ) from error

    def _tensors(self, flat: Sequence[Any]) -> list[torch.Tensor]:
        found = [(name, x) for name, x in zip(self._leaves, flat, strict=True) if isinstance(x, torch.Tensor)]
        device = self.metadata.get("AOTI_DEVICE_KEY", "cpu")
        for name, tensor in found:
            if device == "cpu" and tensor.device.type != "cpu":
                raise ValueError(
                    f"load_package: {name} is on {tensor.device}, but the package was compiled for cpu"
                )
            if tensor.layout is not torch.strided:
                raise ValueError(
                    f"load_package: {name} is {tensor.layout}, and a package takes dense tensors"
                )
        return [tensor for _, tensor in found]

    def session(self) -> NoReturn:
        raise NotImplementedError(
            "load_package: a compiled package has one copy of its buffers and no sessions; use nogil with "
            "backend='graph'"
        )

    def __repr__(self) -> str:
        checked = "checked" if self.checked else "unchecked"
        frozen = ", frozen" if self.frozen else ""
        return (
            f"torchgil.load_package({self.path!r}, runners={self.runners}, inputs={checked}, "
            f"device={self.metadata.get('AOTI_DEVICE_KEY')!r}, backend={self.backend!r}{frozen})"
        )

    def __copy__(self) -> PackageForward:
        return self  # nothing in it ever changes

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a loaded package is native code and cannot be pickled or copied; send the .pt2 file and "
            "load_package() it"
        )


def _inspect(path: Path) -> dict[str, str]:
    """The package's metadata, after making sure that it is one and fits this machine."""
    if not path.is_file():
        raise FileNotFoundError(f"load_package: there is no file {str(path)!r}")
    if found := damage(path):
        raise ValueError(
            f"load_package: {str(path)!r} is no .pt2 package, or damaged: {found}; copy it again, or make "
            "it anew with torch._inductor.aoti_compile_and_package"
        )
    with zipfile.ZipFile(path) as archive:
        # torch names the archive's one top folder after the file
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        models = sorted({n.removeprefix(_FOLDER).split("/")[0] for n in names if n.startswith(_FOLDER)})
        if "model" not in models:
            found = f"only the models {', '.join(models)}" if models else "no compiled model"
            raise ValueError(f"load_package: {str(path)!r} holds {found}; expected one named 'model'")
        prefix = _FOLDER + "model/"
        metadata: dict[str, str] = {}
        for inner, name in names.items():
            if inner.startswith(prefix) and inner.endswith("_metadata.json"):
                try:
                    metadata = json.loads(archive.read(name))
                except ValueError as error:
                    raise ValueError(
                        f"load_package: {str(path)!r} has a file {inner} that is no JSON ({error}); make the "
                        "package anew"
                    ) from error
    check_machine(str(path), metadata)
    return metadata


def _load(path: str, runners: int) -> Any:
    """The package, loaded; where it cannot be, nothing of it is left."""
    with contextlib.ExitStack() as folder:
        source = path
        if LOADS_FOLDERS:
            source = folder.enter_context(tempfile.TemporaryDirectory(prefix="torchgil-"))
            with zipfile.ZipFile(path) as archive:
                for item in archive.infolist():
                    if item.filename.partition("/")[2].startswith(_LOADED):
                        item.filename = Path(item.filename).name  # all beside each other, as torch wants them
                        archive.extract(item, Path(source, _FOLDER, "model"))
        try:
            package = C.Package(source, "model", runners)
        except RuntimeError as error:
            raise RuntimeError(f"load_package: torch cannot load {path!r}: {error}") from error
        if not package.complete():
            raise ValueError(
                f"load_package: {path!r} holds code without its weights, and a call would crash; make it "
                "anew with aot_inductor.package_constants_in_so, which is the default"
            )
        weakref.finalize(package, folder.pop_all().close)
    return package
