"""The tensors that a program stores: their names, and which of them are weights.

A program keeps no names but those of tensors in other files, and says of a tensor only whether it needs a gradient.
The exporter writes the weights first, buffers after them, so that a tensor without a gradient among weights is a frozen
one. What operators do with it says the rest: running statistics, scales and zero points are buffers, whole numbers are
weights where they are unpacked as such.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_modelbudget.backends.exported.executorch.program import Method, Tensor
from pytest_modelbudget.backends.exported.executorch.xnnpack import Content
from pytest_modelbudget.backends.exported.graph import Constant
from pytest_modelbudget.summary import TensorSpec

_BUFFERS = {
    "aten._native_batch_norm_legit_no_training": (3, 4),
    "aten._native_batch_norm_legit": (3, 4),
    "aten.native_batch_norm": (3, 4),
    "quantized_decomposed.embedding_byte": (1, 2),
    "quantized_decomposed.embedding_2bit": (1, 2),
    "quantized_decomposed.embedding_4bit": (1, 2),
    "quantized_decomposed.mixed_mm": (2, 3),
    "quantized_decomposed.mixed_linear": (2, 3),
    "quantized_decomposed.quantize_per_tensor": (1, 2),
    "quantized_decomposed.quantize_per_channel": (1, 2),
    "quantized_decomposed.quantize_per_token": (1, 2),
    "quantized_decomposed.dequantize_per_tensor": (1, 2),
    "quantized_decomposed.dequantize_per_channel": (1, 2),
    "quantized_decomposed.dequantize_per_channel_group": (1, 2),
    "quantized_decomposed.dequantize_per_token": (1, 2),
    "cortex_m.quantized_linear": (3,),
    "cortex_m.quantized_conv2d": (8, 9, 12),
    "cortex_m.quantized_depthwise_conv2d": (9, 10, 13),
    "cortex_m.quantized_transpose_conv2d": (9, 10, 13, 14),
    "cortex_m.quantized_activation": (1,),
}
"""Arguments that are no weights, by their positions."""

_WEIGHTS = {
    "quantized_decomposed.embedding_byte": (0,),
    "quantized_decomposed.embedding_2bit": (0,),
    "quantized_decomposed.embedding_4bit": (0,),
    "quantized_decomposed.mixed_mm": (1,),
    "quantized_decomposed.mixed_linear": (1,),
    "quantized_decomposed.dequantize_per_tensor": (0,),
    "quantized_decomposed.dequantize_per_channel": (0,),
    "quantized_decomposed.dequantize_per_channel_group": (0,),
    "cortex_m.quantized_linear": (1, 2),
    "cortex_m.quantized_conv2d": (1, 2),
    "cortex_m.quantized_depthwise_conv2d": (1, 2),
    "cortex_m.quantized_transpose_conv2d": (1, 2),
    "aten.embedding": (0,),
}
"""Arguments that are weights even where they are whole numbers."""

_IN_A_BYTE = {"quantized_decomposed.embedding_2bit": 4, "quantized_decomposed.embedding_4bit": 2}
"""How many weights are in a byte of the first argument."""

_FLOATS = ("float", "bfloat")


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors that the methods of a program store, and the names of those of the first by their indices.

    `views` are the first's values that show such a tensor in another shape, with the tensor's index; `delegated` the
    names of what its delegates store, by the delegate's index and the value's id.
    """

    constants: Mapping[str, Constant]
    names: Mapping[int, str]
    views: Mapping[int, int]
    delegated: Mapping[tuple[int, int], str]
    notes: tuple[str, ...]


def stored_tensors(methods: Sequence[Method]) -> StoredTensors:
    """Those of the first method, and of the others what it does not share with them."""
    first = _Stored.of(methods[0])
    constants: dict[str, Constant] = {}
    names = {index: first.add(index, constants, "") for index in first.tensors}
    contents = {tensor.content for tensor in first.tensors.values()}
    for number, method in enumerate(methods[1:], start=1):
        stored = _Stored.of(method, number)
        for index, tensor in stored.tensors.items():
            if tensor.content not in contents:
                stored.add(index, constants, f"{method.name}.")
        contents |= {tensor.content for tensor in stored.tensors.values()}
    delegated = [_add_delegated(method, number, constants) for number, method in enumerate(methods)]
    return StoredTensors(constants, names, first.views, delegated[0], tuple(first.notes()))


def _add_delegated(method: Method, number: int, constants: dict[str, Constant]) -> dict[tuple[int, int], str]:
    """Put what the delegates of a method store among `constants`; the names there.

    As among the method's own, values with the same content are equal tensors, and those of other methods the same.
    """
    others = {constant.storage for constant in constants.values()} if number else set()
    prefix = f"{method.name}." if number else ""
    names: dict[tuple[int, int], str] = {}
    places: set[Hashable] = set()
    for index, delegate in enumerate(method.delegates):
        for key, spec, content in delegate.graph.stored if delegate.graph else ():
            storage = ("delegate", content.place)
            if storage in others:
                continue
            what = f"scales_{-1 - key}" if content.is_scale else f"constant_{key}"
            name = f"{prefix}{delegate.backend}_{index}_{what}"
            names[index, key] = name
            unique = (*storage, name) if content.place in places else storage
            constants[name] = _delegated(spec, content, unique, is_again=content.place in places)
            places.add(content.place)
    return names


def _delegated(spec: TensorSpec, content: Content, storage: Hashable, *, is_again: bool) -> Constant:
    shape = tuple(dim for dim in spec.shape if isinstance(dim, int))
    is_weight = bool(shape) and not content.is_scale
    return Constant(shape, spec.dtype, storage, "param" if is_weight else "buffer", 0 if is_again else content.bytes)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The stored tensors of a method.

    Those before its inputs stand for tensors of the source, also where the exporter found the bytes of two equal and
    stored them once. What shows the bytes of another one after that is a view of it.
    """

    number: int
    tensors: Mapping[int, Tensor]
    views: Mapping[int, int]
    again: frozenset[int]
    roles: _Roles

    @classmethod
    def of(cls, method: Method, number: int = 0) -> _Stored:
        first_input = min(method.inputs, default=0)
        tensors: dict[int, Tensor] = {}
        views: dict[int, int] = {}
        firsts: dict[object, int] = {}
        again: set[int] = set()
        for index, value in enumerate(method.values):
            if not isinstance(value, Tensor) or not value.is_constant:
                continue
            first = firsts.setdefault(value.content, index)
            if first != index and index > first_input:
                views[index] = first
                continue
            tensors[index] = value
            if first != index:
                again.add(index)
        return cls(number, tensors, views, frozenset(again), _Roles.of(method, tensors, views))

    def add(self, index: int, constants: dict[str, Constant], prefix: str) -> str:
        """Put a tensor among `constants`; its name there."""
        tensor = self.tensors[index]
        name = f"{prefix}{tensor.name or f'constant_{len(constants)}'}"
        while name in constants:
            name += "'"
        shape, dtype, stored_bytes = self.roles.unpacked(index, tensor)
        if index in self.again:
            stored_bytes = 0
        storage = (self.number, index)
        constants[name] = Constant(shape, dtype, storage, self.roles.role(index, tensor), stored_bytes)
        return name

    def notes(self) -> Iterator[str]:
        """What is not as it seems."""
        roles = [self.roles.role(index, tensor) for index, tensor in self.tensors.items()]
        if "param" in roles and self.roles.last_trained is None:
            yield "none of its tensors needs a gradient: floating-point buffers count as weights too"
        if self.again:
            yield f"{len(self.again)} of its tensors are equal to others and take no bytes of their own: they count"


@dataclass(frozen=True, slots=True)
class _Roles:
    """Which tensors of a method are weights, by their indices."""

    buffers: frozenset[int]
    weights: frozenset[int]
    in_a_byte: Mapping[int, int]
    last_trained: int | None

    @classmethod
    def of(cls, method: Method, tensors: Mapping[int, Tensor], views: Mapping[int, int]) -> _Roles:
        trained = [index for index, tensor in tensors.items() if tensor.requires_grad]
        return cls(
            frozenset(_used_as(method, _BUFFERS, views)),
            frozenset(_used_as(method, _WEIGHTS, views)),
            {call.args[0]: _IN_A_BYTE[call.type] for call in method.calls if call.type in _IN_A_BYTE and call.args},
            max(trained, default=None),
        )

    def role(self, index: int, tensor: Tensor) -> Literal["param", "buffer"]:
        """What a stored tensor is."""
        if tensor.requires_grad:
            return "param"
        if index in self.buffers or not tensor.shape:
            return "buffer"
        if not tensor.dtype.startswith(_FLOATS):
            return "param" if index in self.weights else "buffer"
        is_after_weights = self.last_trained is not None and index > self.last_trained
        return "buffer" if is_after_weights and index not in self.weights else "param"

    def unpacked(self, index: int, tensor: Tensor) -> tuple[tuple[int, ...], str, int | None]:
        """Shape and dtype of what the elements stand for, and their bytes where these are others."""
        packed = self.in_a_byte.get(index, 1)
        if packed == 1 or not tensor.shape:
            return tensor.shape, tensor.dtype, None
        return (*tensor.shape[:-1], tensor.shape[-1] * packed), "int4" if packed == 2 else "int8", tensor.bytes


def _used_as(method: Method, positions: Mapping[str, Sequence[int]], views: Mapping[int, int]) -> Iterator[int]:
    for call in method.calls:
        for position in positions.get(call.type, ()):
            if position < len(call.args):
                yield views.get(call.args[position], call.args[position])
