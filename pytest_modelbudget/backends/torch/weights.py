"""The weights a module holds itself, as plain data; what shares memory with an earlier weight is tied to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch import keras_layers
from pytest_modelbudget.backends.torch.modules import Node
from pytest_modelbudget.backends.torch.programs import frozen_weights
from pytest_modelbudget.backends.torch.trees import dtype_name, storage_key
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Weight


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
        weights = [_weight(node, name, tensor, role, owners, told, model) for name, tensor, role in _own(node, model)]
        weights += _packed(node, notes)
        weights += frozen_weights(node.module)
        rows.append(tuple(keras_layers.as_meant(node.module, weights)))
    return rows, notes


def _own(node: Node, model: str) -> list[tuple[str, torch.Tensor, Any]]:
    if isinstance(node.module, keras_layers.kinds()):
        return keras_layers.weights(node.module, node.path, model)
    found = _of(node.module, "")
    for prefix, part in node.parts:
        found += _of(part, f"{prefix}." if prefix else "")
    return found


def _of(module: nn.Module, prefix: str) -> list[tuple[str, torch.Tensor, Any]]:
    parameters = [(prefix + name, one, "param") for name, one in module._parameters.items() if one is not None]
    return parameters + [(prefix + name, one, "buffer") for name, one in module._buffers.items() if one is not None]


def _weight(
    node: Node,
    name: str,
    tensor: torch.Tensor,
    role: Any,
    owners: dict[object, str],
    told: dict[Hashable, Weight],
    model: str,
) -> Weight:
    if type(tensor) is not nn.Parameter and is_lazy(tensor):
        raise ModelBudgetError(
            f"{model}: the lazy layer {node.path!r} ({node.type}) never saw an input, so its {name!r} has no shape: "
            f"call it in forward, or remove it"
        )
    full = f"{node.path}.{name}"
    owner = owners.setdefault(_identity(tensor), full)
    trainable = role == "param" and tensor.requires_grad
    said = name, tuple(tensor.shape), dtype_name(tensor.dtype), trainable, role
    tied, packed = None if owner == full else owner, _stored(tensor)
    if tied is not None or packed is not None:
        return Weight(*said, tied, packed)
    if (weight := told.get(said)) is None:
        weight = told[said] = Weight(*said)
    return weight


def _identity(tensor: torch.Tensor) -> object:
    """The same for two weights that are the same memory: one object, or one region of one storage (also transposed)."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return id(tensor)
    return storage_key(tensor), tensor.storage_offset(), tensor.numel()


def _stored(tensor: torch.Tensor) -> int | None:
    """Bytes of a sparse tensor, which stores less than its shape says; None for a dense one."""
    if tensor.layout == torch.strided:
        return None
    if tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    else:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return int(sum(part.numel() * part.element_size() for part in parts))


def is_packed(module: nn.Module) -> bool:
    """Whether `module` holds its weights in a packed (quantised) form, which is neither a parameter nor a buffer."""
    return type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")) and (
        hasattr(module, "_packed_params") or hasattr(module, "param") or hasattr(module, "_all_weight_values")
    )


def _packed(node: Node, notes: list[str]) -> list[Weight]:
    if not is_packed(node.module):
        return []
    values = _readable(node.module)
    if not values:
        notes.append(f"{node.path}: the packed weights of {node.type} cannot be read; params and bytes lack them")
    return [
        Weight(name, tuple(value.shape), dtype_name(value.dtype), trainable=False, packed_bytes=_packed_bytes(value))
        for name, value in values.items()
    ]


def _readable(module: Any) -> dict[str, torch.Tensor]:
    """The tensors inside packed weights, by name: `weight()`, `bias()`, or all of a recurrent layer's."""
    if callable(getattr(module, "get_weight", None)) and callable(getattr(module, "get_bias", None)):
        return {**module.get_weight(), **module.get_bias()}
    found = {name: getattr(module, name)() for name in ("weight", "bias") if callable(getattr(module, name, None))}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _packed_bytes(value: torch.Tensor) -> int:
    """Elements as stored, with the scales and zero points of each channel."""
    size = value.numel() * value.element_size()
    if value.is_quantized and value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        for part in (value.q_per_channel_scales(), value.q_per_channel_zero_points()):
            size += part.numel() * part.element_size()
    return int(size)
