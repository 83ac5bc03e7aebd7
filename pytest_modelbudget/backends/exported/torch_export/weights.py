"""The weights, buffers and constants that an exported program stores, by their places in its archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from pytest_modelbudget.backends.exported import json_parts
from pytest_modelbudget.backends.exported.archives import Archive
from pytest_modelbudget.backends.exported.graph import Constant
from pytest_modelbudget.backends.exported.state_dict import tensors_of
from pytest_modelbudget.backends.exported.torch_tensors import Tensor, bytes_of, last_element
from pytest_modelbudget.backends.model_files import DamagedFile

_CONFIG_BYTES = 32 << 20
_AGAIN = "export the model again"

DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
"""Dtypes by their numbers in the schema (`ScalarType`)."""

_STRIDED = 7
_OLD_PARTS = {"weights": "serialized_state_dict.pt", "constants": "serialized_constants.pt"}
"""Where torch 2.7 and older have them."""

Role = Literal["param", "buffer"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the program as the archive has it."""

    constant: Constant
    record: str
    bytes: int
    """What its elements take of that record."""


def constants(archive: Archive, model: str, roles: Mapping[str, Role]) -> tuple[dict[str, Constant], list[str]]:
    """Every tensor that `model` stores by its name, and notes; `roles` are those that its signature says."""
    stored = {**_part(archive, "weights", model, roles), **_part(archive, "constants", model, roles)}
    if missing := [name for name in roles if name not in stored]:
        raise DamagedFile(f"is damaged: it lacks the weights of {missing[0][:100]!r}: {_AGAIN}")
    return {name: tensor.constant for name, tensor in stored.items()}, list(_unused(archive, stored))


def _part(archive: Archive, part: str, model: str, roles: Mapping[str, Role]) -> dict[str, Stored]:
    """The weights or the constants, as each version of torch stores them."""
    if (config := f"data/{part}/{model}_{part}_config.json") in archive.members:
        return dict(_as_records(archive, f"data/{part}/", config, roles))
    for name in (f"data/{part}/{model}.pt", _OLD_PARTS[part]):
        if name in archive.members:
            with archive.nested(name) as inner:
                return {key: _pickled(name, key, tensor, roles) for key, tensor in tensors_of(inner).items()}
    return {}


def _pickled(part: str, name: str, tensor: Tensor, roles: Mapping[str, Role]) -> Stored:
    """A tensor of torch 2.8 and older, which wrote state dicts into the archive."""
    constant, role = tensor.constant, roles.get(name, _role(tensor.is_parameter))
    trainable = role == "param" and constant.trainable
    return Stored(replace(constant, storage=(part, constant.storage), role=role, trainable=trainable), part, 0)


def _as_records(archive: Archive, folder: str, config: str, roles: Mapping[str, Role]) -> Iterator[tuple[str, Stored]]:
    raw = archive.read(config, _CONFIG_BYTES)
    for name, entry in json_parts.field(json_parts.parsed(raw, config), "config", dict).items():
        if isinstance(entry, dict) and entry.get("tensor_meta") is None:
            continue  # an object of another kind, which only a pickle describes
        if json_parts.field(entry, "use_pickle", bool):
            raise DamagedFile(f"has {name[:100]!r} as a pickle, which is not run: export the model with plain tensors")
        role = roles.get(name, _role(json_parts.field(entry, "is_param", bool)))
        yield name, _tensor(archive, folder, name, entry, role)


def _role(is_parameter: bool) -> Role:
    """That of a tensor which the program does not use, so that its signature does not say it."""
    return "param" if is_parameter else "buffer"


def _tensor(archive: Archive, folder: str, name: str, entry: object, role: Role) -> Stored:
    meta = json_parts.field(entry, "tensor_meta", dict)
    shape, strides = fixed_sizes(meta, "sizes", name), fixed_sizes(meta, "strides", name)
    dtype = DTYPES.get(json_parts.field(meta, "dtype", int))
    if dtype is None or len(shape) != len(strides) or meta.get("layout", _STRIDED) != _STRIDED:
        raise DamagedFile(f"has a tensor of another kind, {name[:100]!r}: export the model with dense plain tensors")
    record = folder + json_parts.field(entry, "path_name", str)
    size = archive.stored_bytes(record)
    offset = fixed_offset(meta, name)
    span = bytes_of(dtype, last_element(shape, strides, offset))
    if size is None or size < span:
        raise DamagedFile(
            f"is damaged: {name[:100]!r} in it has {size or 0:,} bytes, and {span:,} were declared: {_AGAIN}"
        )
    elements, own = prod(shape), bytes_of(dtype, last_element(shape, strides, 0))
    constant = Constant(
        shape,
        dtype,
        storage=(record, offset, shape, strides),
        role=role,
        stored_bytes=own if bytes_of(dtype, elements) > own else None,
        trainable=role == "param" and json_parts.field(meta, "requires_grad", bool),
    )
    return Stored(constant, record, min(own, bytes_of(dtype, elements)))


def fixed_offset(meta: object, place: str) -> int:
    """The offset of a stored tensor in its storage, in elements."""
    return json_parts.size(json_parts.field(json_parts.field(meta, "storage_offset", dict), "as_int", int), place)


def fixed_sizes(meta: object, key: str, place: str) -> tuple[int, ...]:
    """Sizes or strides of a stored tensor, which are numbers."""
    values = [json_parts.field(value, "as_int", int) for value in json_parts.field(meta, key, list)]
    if key == "sizes":
        return json_parts.shape(values, place)
    return tuple(json_parts.size(value, place) for value in values)


def _unused(archive: Archive, stored: Mapping[str, Stored]) -> Iterator[str]:
    """A note of what records keep beside the tensors."""
    once = {tensor.constant.storage: tensor for tensor in stored.values()}
    used: Counter[str] = Counter()
    for tensor in once.values():
        used[tensor.record] += tensor.bytes
    unused = sum(max(0, (archive.stored_bytes(record) or 0) - taken) for record, taken in used.items() if taken)
    if unused:
        yield f"{unused:,} bytes of its weights are in no tensor of the program"
