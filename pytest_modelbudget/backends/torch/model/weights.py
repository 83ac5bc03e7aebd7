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
from pytest_modelbudget.backends.torch.model.packed_layers import (
    PackedWeight,
    hides_features,
    own_tensors,
    packed_weight,
)
from pytest_modelbudget.backends.torch.model.programs import frozen_weights, packed_bytes, unpack_weights
from pytest_modelbudget.backends.torch.model.pytree import dtype_name
from pytest_modelbudget.backends.torch.model.stored_tensors import (
    are_plain,
    can_be_on_meta,
    is_plain,
    memory_region,
    plain_memory_region,
    represented_dtype,
    represented_shape,
    stored_bytes,
)
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Weight

_PACKED_NAMES = ("_packed_params", "param", "_packed_weight_ih", "_packed_weight_hh")
"""What the layers of `torch.ao.nn.quantized` call their packed weights."""


def weights_of(nodes: Sequence[Node], model: str) -> tuple[list[tuple[Weight, ...]], list[str]]:
    """The weights of each node, in order, and notes on those that could not be read.

    Raises:
        ModelBudgetError: a lazy module never saw an input, so its weights have no shape.
    """
    owners: dict[object, str] = {}
    notes: list[str] = []
    rows = []
    shared: dict[Hashable, Weight] = {}  # models have many weights that are alike
    for node in nodes:
        weights = [_weight(node, tensor, owners, shared, model) for tensor in _tensors_of_node(node, model)]
        if not is_of_torch(node.module):
            weights += _prepacked_weights(node, notes)
            weights += frozen_weights(node.module)
            if any("int" in weight.dtype for weight in weights) and hides_features(node.module):
                notes.append(f"{node.path or '(root)'}: {node.type} {_HIDDEN_FEATURES_NOTE}")
            weights = keras_layers.as_meant(node.module, weights)
        rows.append(tuple(weights))
    return rows, notes


_HIDDEN_FEATURES_NOTE = (
    "holds integers with scales and does not say its features (`in_features`, `out_features`): "
    "each integer counts as one element, also where several are packed in it"
)


class _NamedTensor(NamedTuple):  # of which there are very many: these are made fastest
    """A tensor that a module holds, by its name there; `packed` when it stands for another one."""

    name: str
    tensor: torch.Tensor
    role: Any
    packed: PackedWeight | None = None


def _tensors_of_node(node: Node, model: str) -> list[_NamedTensor]:
    if isinstance(node.module, keras_layers.layer_classes()):
        return [_NamedTensor(*weight) for weight in keras_layers.weights(node.module, node.path, model)]
    tensors = _tensors_of_module(node.module, "")
    for prefix, part in node.parts:
        tensors += _tensors_of_module(part, f"{prefix}." if prefix else "")
    return tensors


def _tensors_of_module(module: nn.Module, prefix: str) -> list[_NamedTensor]:
    if (packed := packed_weight(module)) is not None:
        return _tensors_of_packed_layer(module, packed, prefix)
    parameters = [
        _NamedTensor(prefix + name, tensor, "param")
        for name, tensor in module._parameters.items()
        if tensor is not None
    ]
    return parameters + [
        _NamedTensor(prefix + name, tensor, "buffer") for name, tensor in module._buffers.items() if tensor is not None
    ]


def _tensors_of_packed_layer(module: nn.Module, packed: PackedWeight, prefix: str) -> list[_NamedTensor]:
    """The packed weight and the bias stand for parameters, wherever the layer keeps them."""
    parameter_names = (packed.name, "bias", *module._parameters)
    return [
        _NamedTensor(
            prefix + name,
            tensor,
            "param" if name in parameter_names else "buffer",
            packed if name == packed.name else None,
        )
        for name, tensor in {**own_tensors(module), packed.name: packed.tensor}.items()
    ]


def _weight(
    node: Node, named: _NamedTensor, owners: dict[object, str], shared: dict[Hashable, Weight], model: str
) -> Weight:
    tensor, packed = named.tensor, named.packed
    if type(tensor) is not nn.Parameter and is_lazy(tensor):
        raise ModelBudgetError(
            f"{model}: the lazy layer {node.path!r} ({node.type}) never saw an input, so its {named.name!r} has no "
            f"shape: call it in forward, or remove it"
        )
    full_name = f"{node.path}.{named.name}"
    region_key, shape, dtype, stored_nbytes = _description(tensor, packed)
    owner = owners.setdefault(region_key, full_name)
    trainable = named.role == "param" and tensor.requires_grad
    attributes = named.name, shape, dtype, trainable, named.role
    tied = None if owner == full_name else owner
    if tied is not None or stored_nbytes is not None:
        return Weight(*attributes, tied, stored_nbytes)
    if (weight := shared.get(attributes)) is None:
        weight = shared[attributes] = Weight(*attributes)
    return weight


def _description(
    tensor: torch.Tensor, packed: PackedWeight | None
) -> tuple[Hashable, tuple[int, ...], str, int | None]:
    """Where a weight is, the shape and dtype of what it stands for, and its bytes where these do not say them."""
    if packed is not None:
        return memory_region(tensor), packed.shape, packed.dtype, packed.bytes
    if is_plain(tensor):  # nearly all of them
        return plain_memory_region(tensor), tuple(tensor.shape), dtype_name(tensor.dtype), None
    shape = represented_shape(tensor)
    return memory_region(tensor), shape, represented_dtype(tensor, prod(shape)), stored_bytes(tensor)


def runs_on_values_only(module: nn.Module) -> bool:
    """Whether `module` runs on values only: its weights are packed for the CPU's kernels, or cannot be on meta."""
    return any_packed([module])


def any_packed(modules: Sequence[nn.Module]) -> bool:
    """Whether any of `modules` is packed; see `runs_on_values_only`."""
    tensors = all_tensors(modules)
    return any(map(_is_prepacked, modules)) or not (are_plain(tensors) or all(map(can_be_on_meta, tensors)))


def _is_prepacked(module: nn.Module) -> bool:
    """Whether `module` holds its weights in a packed (quantised) form, which is neither a parameter nor a buffer."""
    if isinstance(module, torch.jit.ScriptModule):
        return bool(_packed_objects(module))
    return _is_quantisation_module(type(module).__module__) and any(
        hasattr(module, name) for name in (*_PACKED_NAMES, "_all_weight_values")
    )


@cache
def _is_quantisation_module(module_name: str) -> bool:
    return module_name.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))


def _prepacked_weights(node: Node, notes: list[str]) -> list[Weight]:
    if not _is_prepacked(node.module):
        return []
    values = _unpacked_tensors(node.module)
    if not values:
        notes.append(f"{node.path}: the packed weights of {node.type} cannot be read; params and bytes lack them")
    return [
        Weight(name, tuple(value.shape), dtype_name(value.dtype), trainable=False, packed_bytes=packed_bytes(value))
        for name, value in values.items()
    ]


def _unpacked_tensors(module: Any) -> dict[str, torch.Tensor]:
    """The tensors inside packed weights, by name: `weight()`, `bias()`, or all of a recurrent layer's."""
    if isinstance(module, torch.jit.ScriptModule):
        return unpack_weights(_packed_objects(module))
    if callable(getattr(module, "get_weight", None)) and callable(getattr(module, "get_bias", None)):
        return {**module.get_weight(), **module.get_bias()}
    values = {name: getattr(module, name)() for name in ("weight", "bias") if callable(getattr(module, name, None))}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _packed_objects(module: torch.jit.ScriptModule) -> list[torch.ScriptObject]:
    """The packed weights of a scripted module, which keeps none of the methods that would read them."""
    modules = [module]
    for part in modules:
        modules += [child for name, child in part.named_children() if name in PARTS or part is not module]
    packed_objects = [getattr(part, name, None) for part in modules for name in _PACKED_NAMES]
    return [value for value in packed_objects if isinstance(value, torch.ScriptObject)]
