"""Building a model without memory for its weights.

Parameters go to the meta device when they are registered, large tensors and what torch's own layers make for themselves
when they are made; other small ones stay real, because constructors read them
(`[x.item() for x in torch.linspace(0, rate, depth)]`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial, wraps
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_globals
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

from pytest_modelbudget.backends.patching import SharedChange, UndoOnExit, patch_all
from pytest_modelbudget.backends.torch.compat import no_functions, tree_map_only
from pytest_modelbudget.backends.torch.model.appearance import CPU, as_on_cpu
from pytest_modelbudget.backends.torch.model.checkpoints import NO_DOWNLOADS
from pytest_modelbudget.backends.torch.model.factories import FACTORIES
from pytest_modelbudget.backends.torch.model.global_state import seed_everything as fix_random_states
from pytest_modelbudget.backends.torch.model.meta_tensors import (
    MAX_CONSTANT_ELEMENTS,
    META,
    META_FROM_ELEMENTS,
    MetaTensors,
)
from pytest_modelbudget.backends.torch.model.pytree import lies_on_meta, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import is_sparse, max_elements
from pytest_modelbudget.backends.torch.model.unknown_values import (
    any_unknown,
    initial_seed,
    is_unknown,
    mark_unknown,
    note_refusal,
    refusals_noted,
    rng_in_step,
    skip_draws,
    wants_more_than_meta,
)


@contextmanager
def abstract() -> Iterator[Sequence[str]]:
    """Inside, modules are built with their parameters on the meta device; enter it inside of `global_state_restored`.

    Yields the lines of the builder that asked for values in vain; see `unknown`.
    """
    with ExitStack() as stack:
        fix_random_states()
        stack.enter_context(torch.inference_mode(False))  # a model made of its tensors could not be trained
        stack.enter_context(_HOOKS.inside())
        stack.enter_context(UndoOnExit(partial(_set_meta_tensors, _META_TENSORS.get(get_ident()))))
        _set_meta_tensors(MetaTensors())
        stack.enter_context(_IDLE_INIT.inside())
        stack.enter_context(_NO_COMPILERS.inside())
        stack.enter_context(NO_DOWNLOADS.inside())
        stack.enter_context(as_on_cpu())
        refused_lines = stack.enter_context(refusals_noted())
        stack.enter_context(_RedirectMode())
        yield refused_lines


_META_TENSORS: dict[int, MetaTensors] = {}
"""What replaces parameters in each thread; what other threads build meanwhile is left alone."""


def _set_meta_tensors(meta_tensors: MetaTensors | None) -> None:
    if meta_tensors is None:
        _META_TENSORS.pop(get_ident(), None)
    else:
        _META_TENSORS[get_ident()] = meta_tensors


def _parameter_on_meta(module: nn.Module, name: str, value: torch.Tensor | None) -> torch.Tensor | None:
    if (meta_tensors := _META_TENSORS.get(get_ident())) is None:
        return None
    with no_functions():  # the many looks at a tensor need not go through `_RedirectMode`
        return None if value is None or lies_on_meta(value) else meta_tensors.if_possible(value)


def _buffer_on_meta(module: nn.Module, name: str, value: torch.Tensor | None) -> torch.Tensor | None:
    if (meta_tensors := _META_TENSORS.get(get_ident())) is None:
        return None
    with no_functions():
        if value is None or lies_on_meta(value) or not (is_lazy(value) or max_elements(value) >= _buffer_limit(value)):
            return None
        return meta_tensors.if_possible(value)


def _registration_hooks() -> Callable[[], None]:
    """Hooks for all modules, in new dicts: another thread may be going through the ones that are there."""
    names = {
        "_global_parameter_registration_hooks": _parameter_on_meta,
        "_global_buffer_registration_hooks": _buffer_on_meta,
    }
    return patch_all(
        [(module_globals, name, {**vars(module_globals)[name], hook: hook}) for name, hook in names.items()]
    )


_HOOKS = SharedChange(_registration_hooks)


def _buffer_limit(value: torch.Tensor) -> int:
    is_integral = is_sparse(value) or not (
        value.is_floating_point() or value.is_complex()
    )  # it says where elements are
    return MAX_CONSTANT_ELEMENTS if is_integral else META_FROM_ELEMENTS


def _patched_initializers() -> Iterator[tuple[Any, str, Any]]:
    """There is nothing to fill on meta.

    The functions of `torch.nn.init` (and timm's own) return a meta tensor at once, `reset_parameters` of torch's layers
    leaves weights on meta alone.
    """
    for layer in _layers_with_initializers():
        yield layer, "reset_parameters", _idle_on_meta_weights(layer.reset_parameters)
    for module in _init_modules():
        for name, function in list(vars(module).items()):
            if name.endswith("_") and not name.startswith("__") and callable(function):
                yield module, name, _idle_on_meta(function)
    yield parametrizations, "_is_orthogonal", _true_on_meta(parametrizations._is_orthogonal)
    for module in (torch, torch.random):
        yield module, "initial_seed", initial_seed


_IDLE_INIT = SharedChange(lambda: patch_all(_patched_initializers()))


class ComputesWithValues(RuntimeError):
    """A builder did what cannot be done without values; it has to run with memory."""


_COMPILERS = {
    "torch.jit._trace": ("_trace_impl", "trace", "trace_module", "make_module"),
    "torch.jit._script": ("_script_impl", "script"),
    "torch.jit._freeze": ("freeze", "optimize_for_inference"),
    "torch.jit": ("trace", "trace_module", "script", "freeze", "optimize_for_inference"),
    "torch.export": ("export", "draft_export"),
    "torch.export._trace": ("_export",),
}
"""What makes a program of a module: it runs the module, and weights on meta would be constants of the program.

The inner functions are those that the public ones call, for builders that imported these by name.
"""


def _no_compilers() -> Iterator[tuple[Any, str, Any]]:
    """Compilers of modules raise; on weights without values some of them end the process."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        note_refusal()
        raise ComputesWithValues("the builder traces, scripts or exports a model on meta, which needs values")

    for module_name, names in _COMPILERS.items():
        module = sys.modules.get(module_name)
        for name in names:
            if module is not None and callable(vars(module).get(name)):
                yield module, name, refuse


_NO_COMPILERS = SharedChange(lambda: patch_all(_no_compilers()))


@cache
def _layers_with_initializers() -> tuple[Any, ...]:
    """torch's own classes of layers that fill their weights when they are built."""
    kinds = {base for kind in vars(nn.modules).values() if isinstance(kind, type) for base in kind.__mro__}
    return tuple(kind for kind in kinds if "reset_parameters" in vars(kind) and issubclass(kind, nn.Module))


@cache
def _idle_on_meta_weights(function: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(function)
    def idle(module: Any) -> None:
        with no_functions():
            weights = [weight for weight in module._parameters.values() if weight is not None]
            if weights and all(map(lies_on_meta, weights)):
                skip_draws()
                return
        function(module)

    return idle


def _init_modules() -> Iterator[Any]:
    yield torch.nn.init
    if (timm := sys.modules.get("timm.layers.weight_init")) is not None:
        yield timm


@cache
def _idle_on_meta(function: Callable[..., Any]) -> Callable[..., Any]:
    is_random = function.__name__ not in _CONSTANT_FILLS

    @wraps(function)
    def idle(*args: Any, **kwargs: Any) -> Any:
        tensor = args[0] if args else kwargs.get("tensor")
        with no_functions():
            if isinstance(tensor, torch.Tensor) and lies_on_meta(tensor):
                if is_random:
                    skip_draws()
                return tensor
            if isinstance(tensor, torch.Tensor) and is_random and kwargs.get("generator") is None and not rng_in_step():
                function(*args, **kwargs)
                mark_unknown(tensor)
                return tensor
        return function(*args, **kwargs)

    return idle


_CONSTANT_FILLS = frozenset(("constant_", "zeros_", "ones_", "eye_", "dirac_", "_no_grad_fill_", "_no_grad_zero_"))


def _true_on_meta(function: Callable[..., bool]) -> Callable[..., bool]:
    """torch's own check of a result of its QR decomposition, which on meta has no values to check."""
    return lambda matrix, *args, **kwargs: True if matrix.is_meta else function(matrix, *args, **kwargs)


_WEIGHT_FACTORIES = {torch.empty, torch.zeros, torch.ones}
"""What layers make their weights of."""
_MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda}
_FILLS = {
    torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_, torch.Tensor.erfinv_,
    torch.Tensor.exponential_, torch.Tensor.bernoulli_, torch.Tensor.log_normal_, torch.Tensor.cauchy_,
}  # fmt: skip
_CHANGES = _MOVES | _FILLS
_DRAWS = frozenset(
    ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
     "poisson", "multinomial", "dropout", "alpha_dropout", "feature_alpha_dropout", "gumbel_softmax", "rrelu",
     "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_")
)  # fmt: skip
"""Functions that draw random numbers, of `torch`, `torch.Tensor` and `torch.nn.functional`."""
_VALUE_FREE = frozenset(("__set__", "requires_grad_", "register_hook", "retain_grad"))
"""What is asked of a tensor itself, whatever its values are."""


class _RedirectMode(TorchFunctionMode):  # type: ignore[misc]
    """Sends large new tensors to meta, keeps meta tensors there, and lets real and meta tensors meet."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return _redirect(func, args, kwargs or {})
        except Exception as error:
            if wants_more_than_meta(error) or func is torch.Tensor.__format__:
                note_refusal()
            raise


def _redirect(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    if name == "__get__":  # an attribute of one tensor, whatever it is
        return func(*args, **kwargs)
    if any_unknown() and name not in _VALUE_FREE:
        args, kwargs = tree_map_only(torch.Tensor, _meta_if_marked, (args, kwargs))
    if name in _DRAWS and kwargs.get("generator") in (None, torch.default_generator):
        return _draw(func, name, args, kwargs)
    if func in FACTORIES:
        if func in _WEIGHT_FACTORIES and _is_in_torch_layer(sys._getframe(2)) and _is_floating(kwargs.get("dtype")):
            return torch.empty(*args, **{**kwargs, "device": META})  # zeros of no values are made slowly
        return func(*args, **_factory_kwargs(func, args, kwargs))
    if func in _CHANGES and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
        return args[0] if func in _FILLS else _without_move(func, args, kwargs)
    if func is torch.Tensor.to and isinstance(args[0], torch.Tensor) and _moves_small_to_meta(args, kwargs):
        return _without_move(func, args, kwargs)
    if name.endswith("_") or "out" in kwargs:
        _mark_lost_writes(name, args, kwargs)
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        if not _mixes_devices(args, kwargs):
            raise
        return func(*tree_map_only(torch.Tensor, _to_meta, args), **tree_map_only(torch.Tensor, _to_meta, kwargs))


def _draw(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Random numbers as a builder with memory gets them, or tensors of unknown ones."""
    kwargs = _factory_kwargs(func, args, kwargs) if func in FACTORIES else kwargs
    target = kwargs.get("out", (*args, kwargs.get("tensor"))[0] if name.endswith("_") else None)
    if kwargs.get("device") == META or any(tensor.is_meta for tensor in tensors((args, kwargs))):
        skip_draws()
        return target if name.endswith("_") else func(*args, **kwargs)
    if rng_in_step():
        return func(*args, **kwargs)
    if target is not None:
        func(*args, **kwargs)
        mark_unknown(target)
        return target
    args, kwargs = tree_map_only(torch.Tensor, _to_meta, (args, kwargs))
    return func(*args, **({**kwargs, "device": META} if func in FACTORIES else kwargs))


def _mark_lost_writes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Mark small tensors with memory to which values are written that are not known.

    Raises:
        ComputesWithValues: one is to become another tensor, which has none.
    """
    out = kwargs.get("out")
    targets = tensors(out) if out is not None else tensors(args[:1]) if _writes(name) else []
    if not any(not tensor.is_meta for tensor in targets) or not _mixes_devices(args, kwargs):
        return
    if name == "__set__":
        raise ComputesWithValues("the builder puts a tensor on meta into one with values")
    for tensor in targets:
        mark_unknown(tensor)


def _writes(name: str) -> bool:
    """Whether a function of this name changes its first argument: `add_`, `__iadd__`, `__setitem__`, `data.__set__`."""
    return name.startswith(("__i", "__set")) if name.startswith("__") else name.endswith("_")


def _is_in_torch_layer(frame: FrameType) -> bool:
    """Whether this is the code of a layer of torch's own, which never reads the values of its new weights."""
    return str(frame.f_globals.get("__name__")).startswith("torch.nn.modules.")


def _is_floating(dtype: torch.dtype | None) -> bool:
    return dtype is None or dtype.is_floating_point


def _factory_kwargs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` with `device` changed to meta for large tensors, those of an accelerator and those beside weights."""
    if kwargs.get("out") is not None:
        return kwargs
    device = kwargs.get("device")
    if device is CPU or (device is not None and torch.device(device).type not in ("cpu", "meta")):
        return {**kwargs, "device": META}
    size, limit = FACTORIES[func]
    return {**kwargs, "device": META} if size(args, kwargs) >= limit else kwargs


def _moves_small_to_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a small tensor with values follows another one to meta: a table that a library shares between models."""
    if not any(torch.device(item).type == "meta" for item in (*args[1:], *kwargs.values()) if _is_device(item)):
        return False
    with no_functions():
        return not args[0].is_meta and args[0].numel() < _buffer_limit(args[0])


def _is_device(item: Any) -> bool:
    return isinstance(item, (torch.device, str))


def _without_move(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A move to another device, without the move: only the change of dtype is left."""
    if func is not torch.Tensor.to:
        return args[0]
    rest = [*args[1:], *kwargs.values()]
    dtype = next((item for item in rest if isinstance(item, torch.dtype)), None)
    other = next((item for item in rest if isinstance(item, torch.Tensor)), None)
    if dtype is None and other is None and not kwargs.get("copy"):
        return args[0]  # a tensor of another kind inside may be taken out of it by the change to its own dtype
    dtype = dtype or (other.dtype if other is not None else args[0].dtype)
    return args[0].to(dtype, copy=True) if kwargs.get("copy") else args[0].to(dtype)


def _mixes_devices(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    devices: set[bool] = set()
    tree_map_only(torch.Tensor, lambda tensor: devices.add(tensor.is_meta), (args, kwargs))
    return len(devices) == 2


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else tensor.to(META)


def _meta_if_marked(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(META) if is_unknown(tensor) else tensor
