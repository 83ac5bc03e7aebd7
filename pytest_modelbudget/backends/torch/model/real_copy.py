"""Models with memory, for those that cannot be run without: packed weights, decisions by the values of activations.

Such a run is the same in every process: random states are fixed, memory that nobody wrote is filled, one thread adds
up in one order.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.patching import UndoOnExit
from pytest_modelbudget.backends.torch.model.global_state import seed_everything as fix_random_states
from pytest_modelbudget.backends.torch.model.modules import all_modules, all_tensors, unwrap
from pytest_modelbudget.backends.torch.model.programs import module_of
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.model.stored_tensors import is_plain
from pytest_modelbudget.entry import RunMode
from pytest_modelbudget.errors import ModelBudgetError, TooLarge

REAL_LIMIT = 2**30
"""Bytes of weights up to which a model is built or copied to be run for real, unless `run: real` asks for it."""

_TOO_LARGE = (
    "and {} more than 1 GiB, the limit for a run with real memory: "
    "write `run: real` for this model to run it all the same, or register a smaller one"
)


Rebuild = Callable[[int], object]
"""A builder with memory, called with a seed."""


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """Where a model is from: the user's own, or `built_here`; then `rebuild` makes it once more, with memory."""

    built_here: bool
    rebuild: Rebuild | None = None
    run: RunMode | None = None


def fits_in_memory(model: nn.Module) -> bool:
    """Whether `model` is small enough to be run for real unasked."""
    weights = {id(tensor): tensor for tensor in all_tensors(all_modules(model)) if not is_lazy(tensor)}
    return bool(sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) <= REAL_LIMIT)


def too_large_error(what: str = "its weights take") -> TooLarge:
    """The error of a model that would have to be run for real, and may not be; it goes on a sentence."""
    return TooLarge(_TOO_LARGE.format(what))


@contextmanager
def with_memory(seed: int, *, limited: bool) -> Iterator[None]:
    """See `pytest_modelbudget.backends.Memory`."""
    with ExitStack() as stack:
        stack.enter_context(reproducible(seed))
        if limited:
            stack.enter_context(_limit_weights())
        yield


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Inside, what torch computes on the CPU is the same in every process, whatever it was asked for before."""
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), _warn_only()
    fill_memory, threads = torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        # Not by `torch.use_deterministic_algorithms`, which imports the compiler to tell it, too.
        torch._C._set_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.set_num_threads(1)
        fix_random_states(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.utils.deterministic.fill_uninitialized_memory = fill_memory
            torch._C._set_deterministic_algorithms(deterministic, warn_only=warn_only)


def _warn_only() -> bool:
    return bool(torch.is_deterministic_algorithms_warn_only_enabled())


@contextmanager
def _limit_weights() -> Iterator[None]:
    """Inside, a model whose weights grow past the limit is given up while it is built."""
    sizes: dict[int, int] = {}
    total = 0

    def add(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal total
        if tensor is None or is_lazy(tensor) or tensor.is_meta or (key := storage_key(tensor)) in sizes:
            return
        sizes[key] = tensor.numel() * tensor.element_size()
        total += sizes[key]
        if total > REAL_LIMIT:
            raise too_large_error()

    with (
        UndoOnExit(register_module_parameter_registration_hook(add).remove),
        UndoOnExit(register_module_buffer_registration_hook(add).remove),
    ):
        yield


def with_values(model: nn.Module, name: str, origin: ModelOrigin) -> nn.Module:
    """What can be run on values: a copy of a user's model, or the model of a builder made once more."""
    if origin.rebuild is not None:
        return unwrap(rebuilt(origin.rebuild, name))
    return copy_on_cpu(model, name, limited=origin.run != "real")


def rebuilt(rebuild: Callable[[int], object], name: str) -> nn.Module:
    """The model of a builder, with memory.

    Raises:
        ModelBudgetError: the builder gives no torch model this time, or one without memory.
    """
    model = module_of(rebuild(0))
    if not isinstance(model, nn.Module):
        raise ModelBudgetError(f"{name}: the builder returned a model at first, and then a {type(model).__name__}")
    _refuse_meta(model, name, "let the builder make it on the CPU")
    draw_undefined_parameters(model)
    return on_cpu(model)


def copy_on_cpu(model: nn.Module, name: str, *, limited: bool = True) -> nn.Module:
    """A copy of a user's model on the CPU, with its weights.

    Raises:
        ModelBudgetError: the model is larger than 1 GiB, has no values, or holds something that cannot be copied.
    """
    if limited and not fits_in_memory(model):
        raise ModelBudgetError(f"{name}: the model has to be run on the CPU, {too_large_error()}")
    _refuse_meta(model, name, "give it its weights, or pass a function that builds it")
    try:
        return on_cpu(copy.deepcopy(model))
    except Exception as error:
        raise ModelBudgetError(f"{name}: the model has to be run on a copy, and cannot be copied: {error}") from error


def on_cpu(model: nn.Module) -> nn.Module:
    """`model`, moved there when it is elsewhere."""
    return model if all(tensor.device.type == "cpu" for tensor in model.parameters()) else model.cpu()


def _refuse_meta(model: nn.Module, name: str, cure: str) -> None:
    """A model that needs values, and has none, is an error that names the weight."""
    for path, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_meta:
                full = f"{path}.{key}" if path else key
                raise ModelBudgetError(
                    f"{name}: the model has to be run on values, and its weight {full!r} is on the meta device: {cure}"
                )


def draw_undefined_parameters(model: nn.Module) -> None:
    """Draw the parameters that the model's own code left undefined; `reproducible` filled them with NaN."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if is_plain(parameter) and parameter.is_floating_point() and _has_nan(parameter.detach()):
            _draw_parameter(name, parameter, generator)


def _has_nan(tensor: torch.Tensor) -> bool:
    """Whether it holds a NaN; the sum is asked first, which takes a fraction of the time."""
    return bool(tensor.sum().isnan()) and bool(tensor.isnan().any())


def redraw_parameters(model: nn.Module, seed: int | None) -> None:
    """Other weights for a copy: zeros, or with a `seed` as new layers have them.

    Those have scales of 1, biases of 0, the rest random: it keeps the size of what goes through, while with small ones
    a decision deep in the model would be as with zeros.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and type(parameter) is nn.Parameter and not is_lazy(parameter):
            _draw_parameter(name, parameter, generator)


def _draw_parameter(name: str, parameter: nn.Parameter, generator: torch.Generator | None) -> None:
    with torch.no_grad():
        if generator is None:
            parameter.zero_()
        elif parameter.ndim < 2:
            parameter.fill_(0 if "bias" in name else 1)
        else:
            bound = (6 / max(1, parameter[0].numel())) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
