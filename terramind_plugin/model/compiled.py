"""Functions and modules that run as compiled graphs, one graph for each of a few shapes of their arguments."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, one_line, suggest
from terramind_plugin.model.rehearsal import CAPTURE, rehearse, tensors_in

logger = logging.getLogger("terramind_plugin")

MODES = ("graphs", "default", "off")
"""Modes of compilation; see `compile_model`."""
GRAPHS = 3
"""Maximum number of shapes that are compiled, each in training and in evaluation: one takes up to a minute on a GPU."""
WAIT, SHARE = 32, 0.25
"""Minimum number of calls and share of all calls for a shape other than the first to be compiled. The smaller last
batch of an epoch is never compiled: in an epoch of four batches or more its share is smaller."""
REPEATS = 2
"""Number of times that a shape is compiled again because something other than the arguments has changed, such as the
set of trained parameters; afterwards the shape runs without a graph."""
CASES = 32
"""Number of cases of a function that have graphs; training and evaluation are cases of their own."""
KNOWN = 256
"""Maximum number of shapes that are counted, so that images of many sizes do not fill the memory."""

_said: set[str] = set()
_nested = 0  # graphs that finished calls of this module have compiled: an outer call must not count them as its own
Module = TypeVar("Module", bound=nn.Module)


def compile_model(
    module: Module, mode: str = "graphs", *, backend: str | Callable[..., Any] = "inductor", wait: int = WAIT
) -> Module:
    """Compile the calls of a module in place and return it; the names of its weights do not change.

    Each shape of the arguments has its own graph. The first shape is compiled at its first call, other shapes once they
    are frequent. Rare shapes, such as the smaller last batch of an epoch, are not compiled. If compilation fails, the
    log gives the reason in one line, and the module runs without compilation.

    Args:
        module: A model, or a part of it. Copies of the module are not compiled.
        mode: 'graphs' compiles on a GPU, with CUDA graphs, and changes nothing on a CPU; 'default' compiles on any
            device, without CUDA graphs; 'off' undoes an earlier compilation.
        backend: Compiler, as in `torch.compile`.
        wait: As in `CompiledCall`.

    Raises:
        ConfigError: The mode is unknown.
    """
    hooked: Any = module
    if check_mode(mode) == "off":
        hooked._compiled_call_impl = None
        return module
    old = find_call(module)
    if old is None or (old.mode, old.backend) != (mode, backend):
        hooked._compiled_call_impl = CompiledCall(hooked._call_impl, mode, backend=backend, owner=module, wait=wait)
    return module


def compile_method(owner: nn.Module, name: str, mode: str = "graphs", **arguments: Any) -> None:
    """Compile a method of one module object; other objects of its class do not change.

    Args:
        owner: The module.
        name: Name of the method.
        mode: As in `compile_model`.
        arguments: Further arguments of `CompiledCall`.

    Raises:
        ConfigError: The mode is unknown.
    """
    old = owner.__dict__.get(name)
    call = None
    if check_mode(mode) != "off":
        function = getattr(type(owner), name).__get__(owner)
        settings: dict[str, Any] = {**arguments, "owner": owner}
        call = CompiledCall(function, mode, **settings)
        if isinstance(old, CompiledCall) and (old.mode, old.backend) == (call.mode, call.backend):
            return
    owner.__dict__.pop(name, None)
    if call is not None:
        owner.__dict__[name] = call


def find_call(module: nn.Module) -> CompiledCall | None:
    """Return the compiled call of a module; None if the module is not compiled."""
    call = getattr(module, "_compiled_call_impl", None)
    return call if isinstance(call, CompiledCall) else None


def check_mode(mode: str) -> str:
    """Return a mode of compilation.

    Raises:
        ConfigError: The mode is unknown.
    """
    name = {True: "graphs", False: "off"}.get(mode, mode) if isinstance(mode, bool) else mode  # YAML 1.1: off is False
    if name not in MODES:
        raise ConfigError(f"Unknown mode {mode!r} of compilation. Choose one of {', '.join(MODES)}.{_hint(name)}")
    return name


def compiles_on(mode: str, device: str) -> bool:
    """Return whether models on a kind of device, such as 'cuda', are compiled in a mode."""
    return mode == "default" or (mode == "graphs" and device == "cuda")


def _hint(name: object) -> str:
    return suggest(name, MODES) if isinstance(name, str) else ""


def keep_out(owner: type, *names: str) -> None:
    """Keep methods out of graphs that are compiled around them.

    The class is changed, but only if torch's compiler is already loaded, since loading it takes seconds.

    Args:
        owner: Class of the methods.
        names: Names of the methods.
    """
    for name in names:
        method = owner.__dict__[name]
        if "torch._dynamo" in sys.modules and not getattr(method, "_torchdynamo_disable", False):
            disable: Any = torch.compiler.disable
            setattr(owner, name, disable(method))


class CompiledCall:
    """A function that runs as compiled graphs; see `compile_model`.

    Args:
        function: Function of tensors, and of lists, mappings and dataclasses of tensors; anything else among its
            arguments must be hashable and the same in most calls.
        mode: 'graphs' or 'default'.
        backend: Compiler, as in `torch.compile`.
        owner: Module of the function; training and evaluation mode have different graphs.
        case: Function of the arguments that distinguishes equally important cases, such as the steps of a loop: the
            first shape of each case is compiled at once. At most 32 cases are possible; None for a single case.
        wait: Number of calls after which another shape gets a graph.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        mode: str = "graphs",
        *,
        backend: str | Callable[..., Any] = "inductor",
        owner: nn.Module | None = None,
        case: Callable[..., Hashable] | None = None,
        wait: int = WAIT,
    ) -> None:
        self.function = function
        self.wait = wait
        self.case = case
        self.mode = check_mode(mode)
        self.backend = backend
        self.owner = owner
        self.name = type(owner).__name__ if owner is not None else getattr(function, "__name__", "function")
        self.calls = 0
        """Number of calls so far."""
        self.failure: str | None = None
        """Reason why nothing is compiled any more; None if there is none."""
        self._shapes: dict[Hashable, _Shapes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        settings: dict[str, Any] = {"backend": self.backend, "owner": self.owner, "case": self.case, "wait": self.wait}
        return partial(CompiledCall, **settings), (self.function, self.mode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        self.calls += 1
        device = next((one.device.type for one in tensors_in((args, kwargs))), None)
        if device is None or self.failure is not None or torch.compiler.is_compiling():
            return self.function(*args, **kwargs)
        if not compiles_on(self.mode, device):
            return self.function(*args, **kwargs)
        case = None if self.case is None else self.case(*args, **kwargs)
        state = (case, device, *_state(device, self.owner))
        if state not in self._shapes and len(self._shapes) >= CASES:
            return self.function(*args, **kwargs)
        shapes = self._shapes.setdefault(state, _Shapes(self.wait))
        shape = _describe((args, kwargs))
        if not shapes.deserves_graph(shape):
            return self.function(*args, **kwargs)
        graph = shapes.graphs.get(shape)
        is_new = graph is None
        if graph is None:
            logger.info("%s is being compiled for a new shape of its inputs: this step takes longer.", self.name)
            graph = _Graph(self.function, self._mode_now(), self.backend)
        try:
            if is_new:
                rehearse(partial(graph, *args, **kwargs), self.owner, CAPTURE if graph.copies else 1)
            result = graph(*args, **kwargs)
        except Exception as error:
            # Any error of a new graph may come from the compiler; an error of the function is raised again below.
            if not is_new and not _is_of_compiler(error):
                raise
            reason = _root(error)
        else:
            shapes.graphs[shape] = graph
            if graph.repeats > REPEATS:
                _warn(f"{self.name} changes from step to step, so that its graphs do not last. It runs without them.")
            return result
        result = self.function(*args, **kwargs)
        self._give_up(reason)
        return result

    def _mode_now(self) -> str:
        """Return the mode of a new graph: without CUDA graphs if activations are recomputed in the backward pass.

        PyTorch 2.11 splits the graph of such a backward pass, and fails to capture the pieces.
        """
        owner = self.owner
        if self.mode == "graphs" and owner is not None and owner.training and torch.is_grad_enabled():
            recomputes = any(getattr(one, "activation_checkpointing", False) for one in owner.modules())
            return "default" if recomputes else self.mode
        return self.mode

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._shapes.clear()
        _warn(f"{self.name} runs without compilation: {reason} To turn compilation off, set its mode to off.")


class _Shapes:
    """Shapes of arguments that occurred in one state of torch, such as training in bfloat16."""

    def __init__(self, wait: int) -> None:
        self.wait = wait
        self.graphs: dict[Hashable, _Graph] = {}
        self.calls = 0
        self._seen: dict[Hashable, int] = {}

    def deserves_graph(self, shape: Hashable) -> bool:
        """Count a call and return whether it runs as a graph."""
        self.calls += 1
        if shape in self.graphs:
            return self.graphs[shape].repeats <= REPEATS
        if not self.graphs:
            return True
        if len(self.graphs) >= GRAPHS or (shape not in self._seen and len(self._seen) >= KNOWN):
            return False
        self._seen[shape] = count = self._seen.get(shape, 0) + 1
        return count >= self.wait and count >= SHARE * self.calls


class _Graph:
    """A function compiled for one shape of its arguments."""

    def __init__(self, function: Callable[..., Any], mode: str, backend: str | Callable[..., Any]) -> None:
        options: dict[str, Any] = {}
        if backend == "inductor":
            # The same random numbers as without compilation, so that a seed gives the same losses.
            options["fallback_random"] = True
        self.copies = mode == "graphs"
        if self.copies and backend == "inductor":
            options["triton.cudagraphs"] = True
        self._call = torch.compile(_apart(function), dynamic=False, backend=backend, options=options or None)
        self.repeats = -1
        """Number of times that the function has been compiled again."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        global _nested
        from torch._dynamo.utils import counters

        stats, outside = counters["stats"], _nested
        before = stats["unique_graphs"]
        with nullcontext() if self.repeats >= 0 and not is_distributed() else _one_graph():
            result = self._call(*args, **kwargs)
        made = stats["unique_graphs"] - before
        if self.repeats < 0 or made > _nested - outside:
            self.repeats += 1
        _nested = outside + made
        # The next call overwrites the memory of a CUDA graph's results.
        return _copy(result) if self.copies else result


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with its own code object, since torch stores and counts graphs by code object."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"call_{getattr(function, '__name__', 'function')}")
    return call


def is_distributed() -> bool:
    """Return whether several processes train one model."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _one_graph() -> AbstractContextManager[Any]:
    """Return a context in which distributed training does not split graphs; checkpointing fails in split graphs."""
    import torch._dynamo

    patched: AbstractContextManager[Any] = torch._dynamo.config.patch(optimize_ddp=False)
    return patched


def _state(device: str, owner: nn.Module | None) -> tuple[Hashable, ...]:
    """Return the state of torch, besides the arguments, on which a graph depends."""
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), precision, owner is not None and owner.training


def _describe(value: Any) -> Hashable:
    """Return the shape of an argument: the properties that are fixed in a graph."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    if isinstance(value, Mapping):
        return type(value), *((name, _describe(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return type(value), *(_describe(part) for part in value)
    if is_dataclass(value):
        return type(value), *(_describe(getattr(value, field.name)) for field in fields(value))
    return value if isinstance(value, Hashable) else type(value).__qualname__


def _copy(value: Any) -> Any:
    """Return a result with copies of its tensors; lists, mappings and dataclasses are changed in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        value.update({name: _copy(part) for name, part in value.items()})
    elif isinstance(value, list):
        value[:] = [_copy(part) for part in value]
    elif isinstance(value, tuple):
        parts = [_copy(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif is_dataclass(value):
        for field in fields(value):
            object.__setattr__(value, field.name, _copy(getattr(value, field.name)))
    return value


def _is_of_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _root(error: BaseException) -> str:
    """Return the first line of the original cause of a compiler error, as a sentence."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    text = one_line(str(error).strip().partition("\n")[0]) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _warn(text: str) -> None:
    """Log a warning that has not been logged before."""
    if text not in _said:
        _said.add(text)
        logger.warning("%s", text)
