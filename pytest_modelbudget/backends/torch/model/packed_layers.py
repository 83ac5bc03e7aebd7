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
    dtype_of,
    has_plain_tensors,
    is_plain,
    is_sparse,
    parts,
    region,
    shape_of,
    size,
    tensors_in,
)

_FEATURES = (("out_features", "in_features"), ("outfeatures", "infeatures"))
_TABLES = (("num_embeddings", "embedding_dim"),)
_BITS = ("bits", "w_bit", "wbits", "nbits", "bit_width")
_MOST = 8
_PACKING = frozenset({torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32})

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Packed:
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
        return sum({region(part): size(part) for part in self.stored}.values())

    @property
    def stored(self) -> list[torch.Tensor]:
        """The tensors of plain memory that it is stored in."""
        return [part for tensor in (self.tensor, *self.beside) for part in parts(tensor)]


def packed_weight(module: nn.Module) -> Packed | None:
    """The packed weight of `module`, None when it has none."""
    if is_ordinary(module):
        return None
    features = _features(module, _FEATURES)
    shape = features or _features(module, _TABLES)
    if shape is None:
        return None
    held = own_tensors(module) | _attributes(module)
    count, declared = prod(shape), _declared(module)
    if any(not is_lazy(tensor) and tensor.is_floating_point() and tensor.numel() >= count for tensor in held.values()):
        return None
    main = max(held, key=lambda name: _weight(held[name], declared), default=None)
    if main is None or not (bits := _bits(held[main], count, declared)):
        return None
    dtype = _dtype(held[main], bits, count)
    return Packed(main, held[main], shape, dtype, features is not None, tuple(_beside(module, held, main)))


def hides_features(module: nn.Module) -> bool:
    """Whether `module` holds a matrix of integers and fewer floats to scale them, and does not say its two features.

    Where several elements share an integer, nothing tells how many params these are.
    """
    if is_ordinary(module) or _features(module, (*_FEATURES, *_TABLES)) is not None:
        return False
    held = {name: tensor for name, tensor in own_tensors(module).items() if is_plain(tensor) and not is_lazy(tensor)}
    matrices = [tensor for tensor in held.values() if tensor.dtype in _PACKING and tensor.dim() > 1]
    scales = [tensor.numel() for tensor in held.values() if tensor.is_floating_point()]
    if not (matrices and scales) or max(scales) >= max(tensor.numel() for tensor in matrices):
        return False
    declared = _declared(module)
    if declared is not None:
        return any(declared < 8 * tensor.element_size() for tensor in matrices)
    return any(tensor.dtype != torch.int8 for tensor in matrices) and any("scale" in name for name in held)


def _beside(module: nn.Module, held: dict[str, torch.Tensor], main: str) -> list[torch.Tensor]:
    """What belongs to the weight and is neither in its own attributes nor a parameter or buffer."""
    own = {region(part) for tensor in held.values() for part in parts(tensor)}
    if not is_plain(held[main]) and len(parts(held[main])) > 1:  # the layer has the same objects, or copies of them
        return []
    return [tensor for tensor in tensors_in(_plain_attributes(module)) if region(tensor) not in own]


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module, and its plain attributes of floats; integers there are constants."""
    held = {**module._parameters, **module._buffers}
    own = {name: tensor for name, tensor in held.items() if tensor is not None}
    return own | {name: value for name, value in _attributes(module).items() if value.is_floating_point()}


def is_ordinary(module: nn.Module) -> bool:
    """Whether a module is a layer of torch's own with weights as they are shaped, as most of a model are."""
    if not is_of_torch(module):
        return False
    for tensor in module._parameters.values():
        if tensor is not None and not tensor.is_floating_point():
            return False
    return has_plain_tensors(module)


def _attributes(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}


def _dtype(tensor: torch.Tensor, bits: int, count: int) -> str:
    if tensor.numel() == count:
        return dtype_name(tensor.dtype)
    return f"int{bits}" if is_plain(tensor) else dtype_of(tensor, count)


def _plain_attributes(module: nn.Module) -> list[Any]:
    """What the layer keeps in dicts and objects of its own; names with `_` first are torch's, or of hooks around it."""
    held = vars(module).items()
    return [value for name, value in held if not name.startswith("_") and not isinstance(value, torch.Tensor)]


def _features(module: nn.Module, names: Sequence[tuple[str, str]]) -> Shape | None:
    for first, second in names:
        sides = vars(module).get(first), vars(module).get(second)
        if all(type(side) is int and side > 0 for side in sides):
            return sides
    return None


def _declared(module: nn.Module) -> int | None:
    """The bits of an element that the layer says itself, or in a dict that it holds."""
    for held in (vars(module), *(value for value in vars(module).values() if type(value) is dict)):
        for name in _BITS:
            if type(held.get(name)) is int:
                return int(held[name])
    return None


def _weight(tensor: torch.Tensor, declared: int | None) -> int:
    """Bytes, of those that could be packed."""
    if is_lazy(tensor) or is_sparse(tensor) or tensor.is_nested or tensor.is_quantized:
        return 0
    return size(tensor) if tensor.dtype in _PACKING or (declared is not None and tensor.is_floating_point()) else 0


def _bits(tensor: torch.Tensor, count: int, declared: int | None) -> int:
    """Bits of each of `count` elements that are packed in `tensor`; 0 when they are not, or do not fit."""
    stored = 8 * _weight(tensor, declared)
    if declared is not None:  # rows and groups may be padded
        return declared if declared * count <= stored < 2 * declared * count and declared <= _MOST else 0
    bits = stored // count
    return bits if bits * count == stored and 1 <= bits <= _MOST else 0


def stored_in(modules: Sequence[nn.Module]) -> Iterator[torch.Tensor]:
    """The tensors of plain memory that packed layers hold beside their parameters and buffers."""
    for module in modules:
        if (packed := packed_weight(module)) is not None:
            yield from packed.stored


class Products:
    """What operators that torch does not know cost, where they work on weights that stand for others.

    An operator that reads such a weight `(out, in)` and data of `in` features, and gives as many rows of `out`, is
    the product of the layer: 2 * in * out for each row. One that reads nothing but such a weight and gives as many
    elements as it stands for brings it into another form: zero.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules  # those that are ordinary need not be among them
        self._read: tuple[dict[int, Shape], dict[int, tuple[int, Shape]]] | None = None

    def of(self, read: Sequence[torch.Tensor], out: Any) -> int | None:
        """FLOPs of an operator that read `read` and gave `out`; None when that is not known."""
        _, owners = self._weights()
        found = {owner for tensor in read if (owner := owners.get(storage_key(tensor))) is not None}
        if len(found) != 1:
            return None
        ((_, shape),) = found
        rest = [tensor for tensor in read if storage_key(tensor) not in owners]
        made = tensors(out) or rest[-1:]  # what it gives may be written into its last operand
        if not rest:
            return 0 if made and all(tensor.numel() == prod(shape) for tensor in made) else None
        return next((flops for data in rest for result in made if (flops := _linear(shape, data, result))), None)

    def unseen(self, module: nn.Module, read: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> int:
        """FLOPs of a call of a packed layer in which no product was seen: kernels may be called past torch."""
        shape = self._weights()[0].get(id(module))
        if shape is None:
            return 0
        return next((flops for data in read for result in made if (flops := _linear(shape, data, result))), 0)

    def _weights(self) -> tuple[dict[int, Shape], dict[int, tuple[int, Shape]]]:
        """The shapes of packed layers by module, and owner and shape by each storage that belongs to one."""
        if self._read is None:
            self._read = {}, {}
            layers, owners = self._read
            for module in self._modules:
                packed = packed_weight(module)
                if packed is not None and packed.multiplied:
                    layers[id(module)] = packed.shape
                    held = [*own_tensors(module).values(), *packed.stored]
                    owners |= {storage_key(tensor): (id(module), packed.shape) for tensor in held}
                for tensor in () if packed is not None else own_tensors(module).values():
                    if not is_lazy(tensor) and not is_plain(tensor) and len(shape := shape_of(tensor)) == 2:
                        owner = id(tensor), (shape[0], shape[1])
                        owners |= {storage_key(part): owner for part in parts(tensor)}
        return self._read


def _linear(shape: Shape, data: torch.Tensor, result: torch.Tensor) -> int:
    """FLOPs of `(*, in) -> (*, out)`; 0 when these are not its shapes."""
    outs, ins = shape
    if not data.dim() or not result.dim() or data.shape[-1] != ins or result.shape[-1] != outs:
        return 0
    return 2 * result.numel() * ins if data.numel() * outs == result.numel() * ins else 0
