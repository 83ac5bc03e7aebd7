"""The weights a module holds itself, as plain data; what shares memory with an earlier weight is tied to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.modules import PARTS, Node, all_tensors, is_of_torch
from pytest_modelbudget.backends.torch.model.packed_layers import Packed, hides_features, own_tensors, packed_weight
from pytest_modelbudget.backends.torch.model.programs import frozen_weights, packed_bytes, unpacked
from pytest_modelbudget.backends.torch.model.pytree import dtype_name
from pytest_modelbudget.backends.torch.model.stored_tensors import (
    are_plain,
    dtype_of,
    goes_to_meta,
    is_plain,
    plain_region,
    region,
    shape_of,
    stored_bytes,
)
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Weight

_PACKED = ("_packed_params", "param", "_packed_weight_ih", "_packed_weight_hh")
"""What the layers of `torch.ao.nn.quantized` call their packed weights."""


def weights_of(found: Sequence[Node], model: str) -> tuple[list[tuple[Weight, ...]], list[str]]:
    """The weights of each node, in order, and notes on those that could not be read.

    Raises:
        ModelBudgetError: a lazy module never saw an input, so its weights have no shape.
    """
    owners: dict[object, str] = {}
    notes: list[str] = []
    rows = []
    told: dict[Hashable, Weight] = {}  # models have many weights that are alike
    for node in found:
        weights = [_weight(node, held, owners, told, model) for held in _own(node, model)]
        if not is_of_torch(node.module):
            weights += _packed(node, notes)
            weights += frozen_weights(node.module)
            if any("int" in weight.dtype for weight in weights) and hides_features(node.module):
                notes.append(f"{node.path or '(root)'}: {node.type} {_HIDDEN}")
            weights = keras_layers.as_meant(node.module, weights)
        rows.append(tuple(weights))
    return rows, notes


_HIDDEN = (
    "holds integers with scales and does not say its features (`in_features`, `out_features`): "
    "each integer counts as one element, also where several are packed in it"
)


class _Held(NamedTuple):  # of which there are very many: these are made fastest
    """A tensor that a module holds, by its name there; `packed` when it stands for another one."""

    name: str
    tensor: torch.Tensor
    role: Any
    packed: Packed | None = None


def _own(node: Node, model: str) -> list[_Held]:
    if isinstance(node.module, keras_layers.kinds()):
        return [_Held(*held) for held in keras_layers.weights(node.module, node.path, model)]
    found = _of(node.module, "")
    for prefix, part in node.parts:
        found += _of(part, f"{prefix}." if prefix else "")
    return found


def _of(module: nn.Module, prefix: str) -> list[_Held]:
    if (packed := packed_weight(module)) is not None:
        return _of_packed(module, packed, prefix)
    parameters = [_Held(prefix + name, one, "param") for name, one in module._parameters.items() if one is not None]
    return parameters + [
        _Held(prefix + name, one, "buffer") for name, one in module._buffers.items() if one is not None
    ]


def _of_packed(module: nn.Module, packed: Packed, prefix: str) -> list[_Held]:
    """The packed weight and the bias stand for parameters, wherever the layer keeps them."""
    standing = (packed.name, "bias", *module._parameters)
    return [
        _Held(prefix + name, tensor, "param" if name in standing else "buffer", packed if name == packed.name else None)
        for name, tensor in {**own_tensors(module), packed.name: packed.tensor}.items()
    ]


def _weight(node: Node, held: _Held, owners: dict[object, str], told: dict[Hashable, Weight], model: str) -> Weight:
    tensor, packed = held.tensor, held.packed
    if type(tensor) is not nn.Parameter and is_lazy(tensor):
        raise ModelBudgetError(
            f"{model}: the lazy layer {node.path!r} ({node.type}) never saw an input, so its {held.name!r} has no "
            f"shape: call it in forward, or remove it"
        )
    full = f"{node.path}.{held.name}"
    place, shape, dtype, stored = _description(tensor, packed)
    owner = owners.setdefault(place, full)
    trainable = held.role == "param" and tensor.requires_grad
    said = held.name, shape, dtype, trainable, held.role
    tied = None if owner == full else owner
    if tied is not None or stored is not None:
        return Weight(*said, tied, stored)
    if (weight := told.get(said)) is None:
        weight = told[said] = Weight(*said)
    return weight


def _description(tensor: torch.Tensor, packed: Packed | None) -> tuple[Hashable, tuple[int, ...], str, int | None]:
    """Where a weight is, the shape and dtype of what it stands for, and its bytes where these do not say them."""
    if packed is not None:
        return region(tensor), packed.shape, packed.dtype, packed.bytes
    if is_plain(tensor):  # nearly all of them
        return plain_region(tensor), tuple(tensor.shape), dtype_name(tensor.dtype), None
    shape = shape_of(tensor)
    return region(tensor), shape, dtype_of(tensor, prod(shape)), stored_bytes(tensor)


def is_packed(module: nn.Module) -> bool:
    """Whether `module` runs on values only: its weights are packed for the CPU's kernels, or cannot be on meta."""
    return any_packed([module])


def any_packed(modules: Sequence[nn.Module]) -> bool:
    """Whether any of `modules` is packed; see `is_packed`."""
    tensors = all_tensors(modules)
    return any(map(_is_prepacked, modules)) or not (are_plain(tensors) or all(map(goes_to_meta, tensors)))


def _is_prepacked(module: nn.Module) -> bool:
    """Whether `module` holds its weights in a packed (quantised) form, which is neither a parameter nor a buffer."""
    if isinstance(module, torch.jit.ScriptModule):
        return bool(_objects(module))
    return _is_of_quantisation(type(module).__module__) and any(
        hasattr(module, name) for name in (*_PACKED, "_all_weight_values")
    )


@cache
def _is_of_quantisation(place: str) -> bool:
    return place.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))


def _packed(node: Node, notes: list[str]) -> list[Weight]:
    if not _is_prepacked(node.module):
        return []
    values = _readable(node.module)
    if not values:
        notes.append(f"{node.path}: the packed weights of {node.type} cannot be read; params and bytes lack them")
    return [
        Weight(name, tuple(value.shape), dtype_name(value.dtype), trainable=False, packed_bytes=packed_bytes(value))
        for name, value in values.items()
    ]


def _readable(module: Any) -> dict[str, torch.Tensor]:
    """The tensors inside packed weights, by name: `weight()`, `bias()`, or all of a recurrent layer's."""
    if isinstance(module, torch.jit.ScriptModule):
        return unpacked(_objects(module))
    if callable(getattr(module, "get_weight", None)) and callable(getattr(module, "get_bias", None)):
        return {**module.get_weight(), **module.get_bias()}
    found = {name: getattr(module, name)() for name in ("weight", "bias") if callable(getattr(module, name, None))}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _objects(module: torch.jit.ScriptModule) -> list[torch.ScriptObject]:
    """The packed weights of a scripted module, which keeps none of the methods that would read them."""
    inside = [module]
    for part in inside:
        inside += [child for name, child in part.named_children() if name in PARTS or part is not module]
    held = [getattr(part, name, None) for part in inside for name in _PACKED]
    return [value for value in held if isinstance(value, torch.ScriptObject)]
