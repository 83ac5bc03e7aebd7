"""Layers whose weight is packed: elements of a few bits in integers, with scales beside them, as GPTQ, AWQ and HQQ do.

A packed layer is known by its structure: it says its two features, holds no dense weight of that size, and holds
integers whose bits are enough for it: `in * out` elements of 1 to 8 bits. The packed weight then stands for the weight
`(out, in)`, and a `bias` for the bias. What unpacks it and multiplies with it may be kernels that torch does not know:
what they cost follows from what the layer stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.model.modules import is_of_torch
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import (
    has_plain_tensors,
    held_tensors,
    is_plain,
    is_sparse,
    memory_region,
    plain_bytes,
    plain_parts,
    represented_dtype,
    represented_shape,
)

_FEATURES = (("out_features", "in_features"), ("outfeatures", "infeatures"))
_TABLES = (("num_embeddings", "embedding_dim"),)
_BITS = ("bits", "w_bit", "wbits", "nbits", "bit_width")
_MAX_BITS = 8
_PACKING_DTYPES = frozenset({torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32})

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The weight called `name` stands for one of `shape` (out, in), of elements of `dtype`; `multiplied` in a product.

    `beside` are the tensors that belong to it and are no parameters or buffers: scales in a dict, or in an object.
    """

    name: str
    tensor: torch.Tensor
    shape: Shape
    dtype: str
    multiplied: bool
    beside: tuple[torch.Tensor, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the weight as stored, with what belongs to it."""
        return sum({memory_region(part): plain_bytes(part) for part in self.stored}.values())

    @property
    def stored(self) -> list[torch.Tensor]:
        """The tensors of plain memory that it is stored in."""
        return [part for tensor in (self.tensor, *self.beside) for part in plain_parts(tensor)]


def packed_weight(module: nn.Module) -> PackedWeight | None:
    """The packed weight of `module`, None when it has none."""
    if is_ordinary(module):
        return None
    features = _features(module, _FEATURES)
    shape = features or _features(module, _TABLES)
    if shape is None:
        return None
    tensors_by_name = own_tensors(module) | _tensor_attributes(module)
    count, declared_bits = prod(shape), _declared_bits(module)
    if any(
        not is_lazy(tensor) and tensor.is_floating_point() and tensor.numel() >= count
        for tensor in tensors_by_name.values()
    ):
        return None
    packed_name = max(
        tensors_by_name, key=lambda name: _packable_bytes(tensors_by_name[name], declared_bits), default=None
    )
    if packed_name is None or not (bits := _bits_per_element(tensors_by_name[packed_name], count, declared_bits)):
        return None
    dtype = _packed_dtype(tensors_by_name[packed_name], bits, count)
    return PackedWeight(
        packed_name,
        tensors_by_name[packed_name],
        shape,
        dtype,
        features is not None,
        tuple(_tensors_beside(module, tensors_by_name, packed_name)),
    )


def hides_features(module: nn.Module) -> bool:
    """Whether `module` holds a matrix of integers and fewer floats to scale them, and does not say its two features.

    Where several elements share an integer, nothing tells how many params these are.
    """
    if is_ordinary(module) or _features(module, (*_FEATURES, *_TABLES)) is not None:
        return False
    tensors_by_name = {
        name: tensor for name, tensor in own_tensors(module).items() if is_plain(tensor) and not is_lazy(tensor)
    }
    matrices = [tensor for tensor in tensors_by_name.values() if tensor.dtype in _PACKING_DTYPES and tensor.dim() > 1]
    scales = [tensor.numel() for tensor in tensors_by_name.values() if tensor.is_floating_point()]
    if not (matrices and scales) or max(scales) >= max(tensor.numel() for tensor in matrices):
        return False
    declared_bits = _declared_bits(module)
    if declared_bits is not None:
        return any(declared_bits < 8 * tensor.element_size() for tensor in matrices)
    return any(tensor.dtype != torch.int8 for tensor in matrices) and any("scale" in name for name in tensors_by_name)


def _tensors_beside(
    module: nn.Module, tensors_by_name: dict[str, torch.Tensor], packed_name: str
) -> list[torch.Tensor]:
    """What belongs to the weight and is neither in its own attributes nor a parameter or buffer."""
    own_regions = {memory_region(part) for tensor in tensors_by_name.values() for part in plain_parts(tensor)}
    if (
        not is_plain(tensors_by_name[packed_name]) and len(plain_parts(tensors_by_name[packed_name])) > 1
    ):  # the layer has the same objects, or copies of them
        return []
    return [tensor for tensor in held_tensors(_plain_attributes(module)) if memory_region(tensor) not in own_regions]


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module, and its plain attributes of floats; integers there are constants."""
    registered = {**module._parameters, **module._buffers}
    present = {name: tensor for name, tensor in registered.items() if tensor is not None}
    return present | {name: value for name, value in _tensor_attributes(module).items() if value.is_floating_point()}


def is_ordinary(module: nn.Module) -> bool:
    """Whether a module is a layer of torch's own with weights as they are shaped, as most of a model are."""
    if not is_of_torch(module):
        return False
    for tensor in module._parameters.values():
        if tensor is not None and not tensor.is_floating_point():
            return False
    return has_plain_tensors(module)


def _tensor_attributes(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}


def _packed_dtype(tensor: torch.Tensor, bits: int, count: int) -> str:
    if tensor.numel() == count:
        return dtype_name(tensor.dtype)
    return f"int{bits}" if is_plain(tensor) else represented_dtype(tensor, count)


def _plain_attributes(module: nn.Module) -> list[Any]:
    """What the layer keeps in dicts and objects of its own; names with `_` first are torch's, or of hooks around it."""
    attributes = vars(module).items()
    return [value for name, value in attributes if not name.startswith("_") and not isinstance(value, torch.Tensor)]


def _features(module: nn.Module, names: Sequence[tuple[str, str]]) -> Shape | None:
    for out_name, in_name in names:
        sides = vars(module).get(out_name), vars(module).get(in_name)
        if all(type(side) is int and side > 0 for side in sides):
            return sides
    return None


def _declared_bits(module: nn.Module) -> int | None:
    """The bits of an element that the layer says itself, or in a dict that it holds."""
    for holder in (vars(module), *(value for value in vars(module).values() if type(value) is dict)):
        for name in _BITS:
            if type(holder.get(name)) is int:
                return int(holder[name])
    return None


def _packable_bytes(tensor: torch.Tensor, declared_bits: int | None) -> int:
    """Bytes, of those that could be packed."""
    if is_lazy(tensor) or is_sparse(tensor) or tensor.is_nested or tensor.is_quantized:
        return 0
    return (
        plain_bytes(tensor)
        if tensor.dtype in _PACKING_DTYPES or (declared_bits is not None and tensor.is_floating_point())
        else 0
    )


def _bits_per_element(tensor: torch.Tensor, count: int, declared_bits: int | None) -> int:
    """Bits of each of `count` elements that are packed in `tensor`; 0 when they are not, or do not fit."""
    stored_bits = 8 * _packable_bytes(tensor, declared_bits)
    if declared_bits is not None:  # rows and groups may be padded
        return (
            declared_bits
            if declared_bits * count <= stored_bits < 2 * declared_bits * count and declared_bits <= _MAX_BITS
            else 0
        )
    bits = stored_bits // count
    return bits if bits * count == stored_bits and 1 <= bits <= _MAX_BITS else 0


def packed_tensors_in(modules: Sequence[nn.Module]) -> Iterator[torch.Tensor]:
    """The tensors of plain memory that packed layers hold beside their parameters and buffers."""
    for module in modules:
        if (packed := packed_weight(module)) is not None:
            yield from packed.stored


class PackedProducts:
    """What operators that torch does not know cost, where they work on weights that stand for others.

    An operator that reads such a weight `(out, in)` and data of `in` features, and gives as many rows of `out`, is
    the product of the layer: 2 * in * out for each row. One that reads nothing but such a weight and gives as many
    elements as it stands for brings it into another form: zero.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules  # those that are ordinary need not be among them
        self._read: tuple[dict[int, Shape], dict[int, tuple[int, Shape]]] | None = None

    def flops_of(self, operands: Sequence[torch.Tensor], out: Any) -> int | None:
        """FLOPs of an operator that read `operands` and gave `out`; None when that is not known."""
        _, owners = self._weights()
        layers = {owner for tensor in operands if (owner := owners.get(storage_key(tensor))) is not None}
        if len(layers) != 1:
            return None
        ((_, shape),) = layers
        others = [tensor for tensor in operands if storage_key(tensor) not in owners]
        results = tensors(out) or others[-1:]  # what it gives may be written into its last operand
        if not others:
            return 0 if results and all(tensor.numel() == prod(shape) for tensor in results) else None
        return next(
            (flops for data in others for result in results if (flops := _linear_flops(shape, data, result))), None
        )

    def unseen_flops(self, module: nn.Module, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> int:
        """FLOPs of a call of a packed layer in which no product was seen: kernels may be called past torch."""
        shape = self._weights()[0].get(id(module))
        if shape is None:
            return 0
        return next(
            (flops for data in inputs for result in outputs if (flops := _linear_flops(shape, data, result))), 0
        )

    def _weights(self) -> tuple[dict[int, Shape], dict[int, tuple[int, Shape]]]:
        """The shapes of packed layers by module, and owner and shape by each storage that belongs to one."""
        if self._read is None:
            self._read = {}, {}
            layers, owners = self._read
            for module in self._modules:
                packed = packed_weight(module)
                if packed is not None and packed.multiplied:
                    layers[id(module)] = packed.shape
                    layer_tensors = [*own_tensors(module).values(), *packed.stored]
                    owners |= {storage_key(tensor): (id(module), packed.shape) for tensor in layer_tensors}
                for tensor in () if packed is not None else own_tensors(module).values():
                    if not is_lazy(tensor) and not is_plain(tensor) and len(shape := represented_shape(tensor)) == 2:
                        owner = id(tensor), (shape[0], shape[1])
                        owners |= {storage_key(part): owner for part in plain_parts(tensor)}
        return self._read


def _linear_flops(shape: Shape, data: torch.Tensor, result: torch.Tensor) -> int:
    """FLOPs of `(*, in) -> (*, out)`; 0 when these are not its shapes."""
    out_features, in_features = shape
    if not data.dim() or not result.dim() or data.shape[-1] != in_features or result.shape[-1] != out_features:
        return 0
    return 2 * result.numel() * in_features if data.numel() * out_features == result.numel() * in_features else 0
