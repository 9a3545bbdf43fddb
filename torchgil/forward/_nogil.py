"""A model's forward under one single release of the GIL."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch

from torchgil._checks import flag
from torchgil._priority import priority_unavailable
from torchgil.forward._exporting import exported, load, save
from torchgil.forward._forward import Forward
from torchgil.forward._graph import build
from torchgil.forward._inputs import InputPlan, plan_inputs
from torchgil.forward._instructions import plan
from torchgil.forward._machine import devices
from torchgil.forward._operands import Constant, Plan
from torchgil.forward._options import check_cache_dir, check_dynamic_shapes, check_runners
from torchgil.forward._session import Session
from torchgil.forward._state import Layout, lay_out
from torchgil.forward._structure import Arguments, Results, to_pickle
from torchgil.forward._weights import Watch, weight_of

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["GraphForward", "nogil"]


def nogil(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    backend: Literal["graph", "inductor"] = "graph",
    runners: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    freeze: bool = False,
    gil_priority: bool = True,
) -> Forward:
    """Get a callable that runs a model's forward under one single release of the GIL.

    Any number of threads may call it at the same time. It runs under inference mode and shares the model's
    weights: a change of their values (`weight.copy_(...)`, `weight.data = ...`) is seen by the calls that
    follow, and must not happen during one; where a weight, or a module on the way to it, was replaced
    (`model.weight = ...`, `model.half()`, an adapter), a call raises a RuntimeError that says to build again.

    A model that writes to its buffers, such as a decoder with its key-value cache, has state: two threads
    would write at once. A call of it raises a RuntimeError; its method ``session()`` returns a
    :class:`torchgil.Session`, with copies of what is written, that is called instead. Any number of sessions
    may be called at the same time. They start with the values that the buffers have now.

    Args:
        model: A module in eval mode, exported here with :func:`torch.export.export`; or what that returned.
        args: Example positional arguments for a module: shapes, dtypes and devices are taken from them. An
            exported program has its own.
        kwargs: Example keyword arguments.
        dynamic_shapes: Which sizes may change from call to call, as :func:`torch.export.export` takes it.
            All others are fixed to the example's.
        backend: ``"graph"`` runs the exported operators one after the other, bit for bit as the exported
            module does. ``"inductor"`` compiles them with AOTInductor; that takes a C++ compiler, and
            minutes for large models. Its package has copies of the weights, in memory and on disk (see
            :func:`torchgil.load_package`): changes of the model's are not seen.
        runners: For ``"inductor"``: how many calls may run at once; by default the usable cores.
        cache_dir: For ``"inductor"``: a folder that keeps compiled packages, so that the same graph and
            weights are compiled once. By default none is kept. Only code you trust may write there: packages
            are native code.
        freeze: For ``"inductor"``: take the weights for constants. What follows from them alone is computed
            once, batch norm goes into the convolution before it, and weights are packed as the processor's
            kernels read them: faster, and other in the last bits. The model's own weights are no longer seen;
            where one was replaced, or its values changed, a call raises a RuntimeError for as long as the
            model lives (it is not kept). Writes through ``weight.data``, a batch norm's to its statistics and
            those to tensors made under inference mode leave no trace, and of an exported program no model is
            known.
        gil_priority: A call that ends beside a thread busy in Python asks for the GIL back at once, not
            after the switch interval: one forced switch per call (:func:`torchgil.gil_priority`).

    Returns:
        A :class:`torchgil.Forward`: call it with the model's arguments, or of a model with state the sessions
        that it makes.

    Raises:
        NotImplementedError: The graph cannot be run so; the message names the node, its line and what to do.
            It writes to an argument or a parameter, or is to be compiled and writes to a buffer.
        TypeError: An argument of this function is of another type; the message names it.
        ValueError: An argument of this function does not fit the others, an exported program was exported
            with one tensor for two arguments, or its graph was changed so that it is none any more; the
            message names the node.

    Example:
        >>> import torch, torchgil
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
        >>> forward = torchgil.nogil(model, (torch.ones(2, 4),))
        >>> forward(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """
    if not isinstance(backend, str) or backend not in ("graph", "inductor"):
        raise ValueError(f"nogil: backend must be 'graph' or 'inductor', got {backend!r}")
    gil_priority = flag("nogil: gil_priority", gil_priority)
    freeze = flag("nogil: freeze", freeze)
    check_dynamic_shapes(dynamic_shapes)
    if backend == "graph" and (runners is not None or cache_dir is not None):
        raise ValueError(
            "nogil: runners and cache_dir are for backend='inductor'; the graph backend compiles nothing, "
            "and runs any number of calls at once"
        )
    if backend == "graph" and freeze:
        raise ValueError(
            "nogil: freeze is for backend='inductor'; the graph backend reads the model's weights at each "
            "call"
        )
    if runners is not None:
        runners = check_runners("nogil", runners)
    if cache_dir is not None:
        check_cache_dir(cache_dir)
    if isinstance(dynamic_shapes, torch.export.ShapesCollection):
        # It knows the examples by their identity, and some may be exported as copies.
        dynamic_shapes = dynamic_shapes.dynamic_shapes(model, args, kwargs)
    program, signature = exported(model, args, kwargs, dynamic_shapes)
    if backend == "graph":
        return GraphForward(
            program,
            dynamic_shapes=dynamic_shapes,
            signature=signature,
            model=model if isinstance(model, torch.nn.Module) else None,
            gil_priority=gil_priority,
        )
    from torchgil.forward._inductor import compile_forward

    return compile_forward(
        program,
        dynamic_shapes=dynamic_shapes,
        signature=signature,
        runners=runners,
        cache_dir=cache_dir,
        gil_priority=gil_priority,
        freeze=freeze,
        model=model if isinstance(model, torch.nn.Module) else None,
    )


class GraphForward(Forward):
    """What :func:`nogil` returns for the backend ``"graph"``.

    Attributes:
        exported_program: The graph it runs.
        python_ops: Operators whose kernel on the program's devices is Python: they take the GIL back while
            they run.
        backend: ``"graph"``.
        state_names: The buffers and lifted constants that it writes to: what each session has of its own.
    """

    backend: Literal["graph"] = "graph"

    def __init__(
        self,
        program: ExportedProgram,
        *,
        dynamic_shapes: Any = None,
        signature: inspect.Signature | None = None,
        model: nn.Module | None = None,
        gil_priority: bool = True,
        state: Layout | None = None,
    ) -> None:
        self.exported_program = program
        self._plan: Plan = plan(program, None if state is None else state.targets)
        self._state = lay_out(program, self._plan.state) if state is None else state
        self.state_names = tuple(member.name for member in self._state.members)
        self._inputs: InputPlan = plan_inputs(program, dynamic_shapes, signature)
        self._dynamic_shapes = dynamic_shapes
        self._signature = signature
        weights = {name: weight_of(program, name) for name in self._plan.weights}
        self._watch = Watch(model, weights) if model is not None else None
        self._graph = build(self._plan, self._inputs, list(weights.values()), self._state)
        self._graph.gil_priority = gil_priority and priority_unavailable() is None
        self._run = self._graph.run
        in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
        assert in_spec is not None
        assert out_spec is not None
        self._flatten = Arguments(in_spec, self._inputs.argument_names, signature).flatten
        constants = [(isinstance(o, Constant), getattr(o, "value", None)) for o in self._plan.outputs]
        self._unflatten = Results(out_spec, constants).unflatten
        self.python_ops = _python_ops(self._plan, program)
        if self.python_ops:
            warnings.warn(
                f"nogil: the kernel of {', '.join(self.python_ops)} is Python and takes the GIL back "
                "while it runs; write it in C++ to run the whole forward without the GIL",
                stacklevel=3,
            )

    # GIL: held on entry, released once while the graph runs.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._watch is not None:
            self._watch.check()
        return self._unflatten(self._run(self._flatten(args, kwargs)))

    def session(self) -> Session:
        return Session(self)

    def __repr__(self) -> str:
        inputs = ", ".join(map(_describe_leaf(self._inputs), self._inputs.leaves))
        dynamic = ", ".join(
            f"{d.name} in [{d.low}, {'...' if d.high is None else d.high}]"
            for d in self._inputs.dimensions.values()
        )
        return (
            f"torchgil.nogil(inputs=({inputs}), dynamic=({dynamic}), instructions={self._plan.count}, "
            f"backend={self.backend!r}{f', state={self.state_names}' if self.state_names else ''})"
        )

    def __copy__(self) -> GraphForward:
        return self  # nothing in it ever changes

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphForward:
        # With the signature's own defaults, which never change and need not be pickled.
        shapes = copy.deepcopy(self._dynamic_shapes, memo)
        return _load(
            save(self.exported_program), shapes, self._signature, self._graph.gil_priority, self._state
        )

    def __reduce__(self) -> tuple[Any, ...]:
        signature = self._signature and to_pickle(self._signature)
        return (
            _load,
            (
                save(self.exported_program),
                self._dynamic_shapes,
                signature,
                self._graph.gil_priority,
                self._state,
            ),
        )


def _load(
    data: bytes,
    dynamic_shapes: Any,
    signature: inspect.Signature | None,
    gil_priority: bool,
    state: Layout | None = None,  # none in what an earlier version pickled
) -> GraphForward:
    return GraphForward(
        load(data),
        dynamic_shapes=dynamic_shapes,
        signature=signature,
        gil_priority=gil_priority,
        state=state,
    )


def _python_ops(plan: Plan, program: ExportedProgram) -> tuple[str, ...]:
    """Operators with a Python kernel, by `torch.library`, for a device that the program has tensors on."""
    kinds = sorted({device.type for device in devices(program)})
    keys = [torch._C._dispatch_key_for_device(device) for device in kinds]
    return tuple(
        name + (f".{overload}" if overload else "")
        for name, overload in plan.ops
        if any(_is_python(name, overload, key) for key in keys)
    )


def _is_python(name: str, overload: str, key: str) -> bool:
    op = name + (f".{overload}" if overload else "")
    # the dispatcher's own order, under inference mode
    for registered in (key, "CompositeExplicitAutograd", "CompositeImplicitAutograd"):
        if torch._C._dispatch_has_kernel_for_dispatch_key(op, registered):
            return f"{op.replace('::', '/')}/{registered}" in torch.library._impls
    return False


def _describe_leaf(plan: InputPlan) -> Any:
    def describe(leaf: Any) -> str:
        if leaf.dtype is not None:
            sizes = ", ".join(str(s) if isinstance(s, int) else plan.dimensions[s].name for s in leaf.sizes)
            return f"{leaf.name}: {str(leaf.dtype).removeprefix('torch.')}[{sizes}]"
        return f"{leaf.name}: int" if leaf.dimension is not None else f"{leaf.name}={leaf.value!r}"

    return describe
