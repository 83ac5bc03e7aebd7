"""The arguments of one call: stand-ins for the objects of an example, or tensors that fit the specs of inputs."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch

from pytest_modelbudget.backends.torch.compat import make_subclass, no_functions, tree_map_only
from pytest_modelbudget.backends.torch.meta.readings import Readings
from pytest_modelbudget.backends.torch.model.meta_copy import ReplaceTensorsInCopy
from pytest_modelbudget.backends.torch.model.meta_tensors import MAX_CONSTANT_ELEMENTS, META, MetaTensors
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs, concrete_shape, tensors_in
from pytest_modelbudget.summary import Below, Fill, Input, TensorSpec

_MAX_FLOATS_WITH_VALUES = 1_024
"""Elements up to which floats in one dimension, or none, keep the values that were given: code may ask for those of a
threshold, a time step, a schedule."""


AssumedValues = Literal["zeros", "ones", "mixed"]
"""Values of ids and masks that nobody gave; mixed are ones and zeros in turn. Ids below a bound are others for ones,
and all the same for mixed."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What the model is called with; `ports` are the tensors in it, with their names, `drawn` those nobody gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ports: list[tuple[str, torch.Tensor]]
    drawn: list[torch.Tensor] = field(default_factory=list)
    readings: Readings = field(default_factory=Readings)

    def on_meta(self) -> ModelCall:
        """The same call with tensors that have no values."""
        copies = {id(tensor): tensor.to(META) for _, tensor in self.ports}
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: copies[id(tensor)], (self.args, self.kwargs))
        return replace(
            self, args=args, kwargs=kwargs, ports=[(name, copies[id(tensor)]) for name, tensor in self.ports]
        )


@dataclass(frozen=True, slots=True)
class ValuePolicy:
    """How tensors are made where nobody gave values.

    With `real` all of them have memory: zeros, or random numbers when there is a `seed`. Else floats are on meta, and
    ids and masks are what is `assumed`. Floats are cast to `half` where that is given.
    """

    real: bool = False
    seed: int | None = None
    assumed: AssumedValues = "zeros"
    half: torch.dtype | None = None

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, in half precision where that was asked for."""
        return tensor if self.half is None or not tensor.is_floating_point() else tensor.to(self.half)


def make_call(inputs: Inputs, sizes: Mapping[str, int], policy: ValuePolicy) -> ModelCall:
    """What a model is called with, made anew for each call: a model may write to its inputs.

    Raises:
        ModelBudgetError: a dtype that torch does not have, or a value that does not fit it.
    """
    if inputs.example is not None:
        args, kwargs = _copy_example(inputs.example, policy)
        ports = [(name, tensor) for name, tensor in tensors_in((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        return ModelCall(args, kwargs, ports)
    ports, drawn, readings = [], [], Readings()

    def make(name: str, spec: TensorSpec) -> torch.Tensor:
        tensor = policy.cast(_make_input(name, spec, sizes, policy))
        if not isinstance(spec.values, Fill):
            drawn.append(tensor)
            if _is_integral(tensor.dtype) and not tensor.is_meta:
                readings.assume(Input(name, spec), tensor)
        ports.append((name, tensor))
        return tensor

    args, kwargs = inputs.build(make)
    return ModelCall(args, kwargs, ports, drawn, readings)


def _make_input(name: str, spec: TensorSpec, sizes: Mapping[str, int], policy: ValuePolicy) -> torch.Tensor:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelBudgetError(f"inputs: {name}: torch has no tensors of dtype {spec.dtype!r}")
    shape = concrete_shape(spec, sizes)
    empty = torch.empty(shape, dtype=dtype, device=META)
    if not (policy.real or _may_need_values(empty, has_given_values=spec.values is not None)):
        return empty
    if isinstance(spec.values, Fill):
        return _fill(name, spec, spec.values, sizes, empty)
    if isinstance(spec.values, Below):
        if policy.assumed == "mixed":  # how many differ is hardly seen by other draws
            return torch.zeros_like(empty, device="cpu")
        offset = (policy.seed or 0) + get_args(AssumedValues).index(policy.assumed)
        return _random_ids(empty, spec.values.bound, zlib.crc32(name.encode()) + offset)
    zeros = torch.zeros_like(empty, device="cpu")
    if policy.real:
        return zeros if policy.seed is None else _random_values(zeros, policy.seed)
    return zeros if policy.assumed == "zeros" else _alternating(zeros, 1 if policy.assumed == "ones" else 2)


def _may_need_values(tensor: torch.Tensor, *, has_given_values: bool) -> bool:
    """Whether code may ask for values of such an input without a real run: whole numbers, and a few known floats.

    Floats of more dimensions meet those of layers where both have to be on one device, as states of recurrent layers.
    """
    if _is_integral(tensor.dtype):
        return bool(tensor.numel() <= MAX_CONSTANT_ELEMENTS)
    return has_given_values and tensor.dim() < 2 and tensor.numel() <= _MAX_FLOATS_WITH_VALUES


def _fill(name: str, spec: TensorSpec, fill: Fill, sizes: Mapping[str, int], like: torch.Tensor) -> torch.Tensor:
    value = sizes[fill.value] if isinstance(fill.value, str) else fill.value
    try:
        return torch.full_like(like, value, device="cpu")
    except RuntimeError:
        raise ModelBudgetError(f"inputs: {name}: {spec}: {value} does not fit into {spec.dtype}") from None


def _random_ids(like: torch.Tensor, bound: int, seed: int) -> torch.Tensor:
    """Whole numbers from 0 to below `bound`, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, min(bound, 2**63 - 1), like.shape, generator=generator, device="cpu").to(like.dtype)


def _random_values(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """Floats of both signs; ids and masks of 0 and 1, which hardly any table is too small for.

    The first of these is another one for the next seed, so that a single value does not stay what it is.
    """
    generator = torch.Generator().manual_seed(seed)
    if tensor.is_floating_point():
        return tensor.uniform_(-1, 1, generator=generator)
    if tensor.is_complex() or not tensor.numel():
        return tensor
    tensor.random_(0, 2, generator=generator).view(-1)[0] = seed % 2
    return tensor


def _alternating(tensor: torch.Tensor, step: int) -> torch.Tensor:
    """1 at every `step`th place from the first on, 0 at the others."""
    tensor.view(-1)[::step] = 1
    return tensor


def _is_integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _copy_example(
    example: tuple[tuple[Any, ...], dict[str, Any]], policy: ValuePolicy
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A copy of an example with its tensors replaced; nothing of the user's own is written to."""
    meta_tensors = MetaTensors()

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        return policy.cast(_stand_in(tensor, policy.real, meta_tensors))

    memo: dict[int, Any] = {}
    for _, tensor in tensors_in(example):
        if isinstance(tensor, torch.Tensor) and id(tensor) not in memo:
            memo[id(tensor)] = stand_in(tensor)
    with ReplaceTensorsInCopy(stand_in), torch.no_grad():
        args, kwargs = example
        return tuple(_copy_or_share(value, memo) for value in args), {
            name: _copy_or_share(value, memo) for name, value in kwargs.items()
        }


def _copy_or_share(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; of what holds something that cannot be copied (a lock, a file), that is shared."""
    new_memo = dict(memo)
    try:
        copied = copy.deepcopy(value, new_memo)
    except Exception:  # whatever the object's class says to being copied
        return _share(value, memo)
    memo |= new_memo
    return copied


def _share(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_copy_or_share(item, memo) for item in value)
    if type(value) is dict:
        return {key: _copy_or_share(item, memo) for key, item in value.items()}
    if not hasattr(value, "__dict__") or isinstance(value, type):
        return value
    copied = copy.copy(value)
    vars(copied).update({name: _copy_or_share(item, memo) for name, item in vars(value).items()})
    return copied


def _stand_in(tensor: torch.Tensor, real: bool, meta_tensors: MetaTensors) -> torch.Tensor:
    """What is handed over for a tensor of an example: its values where they may steer the model, else a meta tensor."""
    kind = type(tensor)
    with no_functions():
        stored_otherwise = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested
        if stored_otherwise or hasattr(kind, "__tensor_flatten__"):  # meta tensors cannot stand for these
            return tensor.detach().clone().cpu()
        if kind in (torch.Tensor, torch.nn.Parameter):
            return _plain_stand_in(tensor, real, meta_tensors)
        data = _plain_stand_in(tensor.as_subclass(torch.Tensor), real, meta_tensors)
        stand_in = make_subclass(kind, data.detach(), tensor.requires_grad)
        vars(stand_in).update(vars(tensor))
        return stand_in


def _plain_stand_in(tensor: torch.Tensor, real: bool, meta_tensors: MetaTensors) -> torch.Tensor:
    if tensor.is_meta:
        return torch.zeros_like(tensor, device="cpu") if real else tensor.detach().clone()
    if real or _is_integral(tensor.dtype) or _may_need_values(tensor, has_given_values=True):
        return tensor.detach().cpu().clone().requires_grad_(tensor.requires_grad)
    return meta_tensors.of(tensor)
