"""Safetensors files by their headers, one or many that an index names; weights are never read.

A file begins with the size of its header in 8 bytes, and the header is JSON: a name, dtype, shape and place for each
tensor. Places have to follow one another from the first byte after the header to the last of the file.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from pytest_modelbudget.backends.exported import json_parts, shards
from pytest_modelbudget.backends.exported.graph import Constant, ExportedModel
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary.tensors import ITEM_BYTES

FORMAT = "safetensors"
BUFFERS_NOTE = (
    "a file of weights does not say which are buffers, nor which are trained: all are params, and floats trainable ones"
)

_HEADER_BYTES = 24 << 20
_MOST_TENSORS = 100_000
"""In one file; the largest models have as many in all their shards together."""

_DTYPES = {
    "BOOL": ("bool", 8), "U8": ("uint8", 8), "I8": ("int8", 8), "U16": ("uint16", 16), "I16": ("int16", 16),
    "U32": ("uint32", 32), "I32": ("int32", 32), "U64": ("uint64", 64), "I64": ("int64", 64), "F16": ("float16", 16),
    "BF16": ("bfloat16", 16), "F32": ("float32", 32), "F64": ("float64", 64), "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8), "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6), "F4": ("float4_e2m1", 4), "F4_E2M1": ("float4_e2m1", 4),
}  # fmt: skip
"""Our name of each dtype, and bits of an element."""

_AGAIN = "fetch it again, or save the model again"
_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class _Header:
    tensors: Mapping[str, _Tensor]
    kept_for: Mapping[str, str]
    """The names that were left out when the file was written, since another tensor is the same."""
    file_bytes: int


def read(path: Path) -> ExportedModel:
    """The tensors of a file, or of all files that the index at `path` names (`model.safetensors.index.json`).

    Raises:
        DamagedFile: a file is damaged, not whole, or no such file.
    """
    return _of_shards(path) if shards.is_index(path) else shards.marked(_model({"": _header(path)}), path)


def _model(headers: Mapping[str, _Header], index_bytes: int = 0, notes: tuple[str, ...] = ()) -> ExportedModel:
    tensors = {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}
    constants = {name: _constant(tensors[name], name) for name in sorted(tensors, key=_natural)}
    for header in headers.values():
        for name, kept in header.kept_for.items():
            if kept in constants and name not in constants:
                constants[name] = constants[kept]
    return ExportedModel(
        format=FORMAT,
        file_bytes=index_bytes + sum(header.file_bytes for header in headers.values()),
        constants=constants,
        notes=(BUFFERS_NOTE, *notes),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """What sorts `layers.2` before `layers.10`: the format keeps no order of the model."""
    return [(int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in re.split(r"(\d+)", name)]


def _constant(tensor: _Tensor, name: str) -> Constant:
    is_float = tensor.dtype.startswith(("float", "bfloat", "complex"))
    packed = tensor.bytes if tensor.dtype not in ITEM_BYTES else None
    return Constant(tensor.shape, tensor.dtype, storage=name, stored_bytes=packed, trainable=is_float)


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if _GIT_LFS.startswith(start) and len(start) == 8:
            raise DamagedFile("is a pointer of Git LFS, not the model: run git lfs pull")
        if len(start) < 8 or length > file_bytes - 8:
            raise DamagedFile(
                f"is damaged: its header says {length:,} bytes, and the file has {file_bytes:,}: {_AGAIN}"
            )
        if length > _HEADER_BYTES:
            raise DamagedFile(
                f"is not read: its header has {length:,} bytes, more than {_HEADER_BYTES:,}: split the file"
            )
        entries = json_parts.parsed(file.read(length), "header")
    metadata = entries.pop("__metadata__", {})
    return _Header(_tensors(entries, file_bytes - 8 - length), _kept_for(metadata), file_bytes)


def _tensors(entries: Mapping[str, Any], data_bytes: int) -> dict[str, _Tensor]:
    """The tensors of a header, whose places fill the `data_bytes` after it without holes."""
    if len(entries) > _MOST_TENSORS:
        raise DamagedFile(f"is not read: it has {len(entries):,} tensors, more than {_MOST_TENSORS:,}: split the file")
    places: list[tuple[int, int, str]] = []
    tensors: dict[str, _Tensor] = {}
    for name, entry in entries.items():
        offsets = json_parts.field(entry, "data_offsets", list)
        if len(offsets) != 2:
            raise DamagedFile(f"is damaged: {name[:100]!r} in it has no beginning and end: {_AGAIN}")
        begin, end = (json_parts.size(offset, name) for offset in offsets)
        tensors[name] = _tensor(name, entry, end - begin)
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached:
            what = "overlaps the tensor before it" if begin < reached else "comes after bytes that no tensor has"
            raise DamagedFile(f"is damaged: {name[:100]!r} in it {what}: {_AGAIN}")
        reached = end
    if reached != data_bytes:
        raise DamagedFile(f"is damaged: its tensors take {reached:,} bytes, and the file has {data_bytes:,}: {_AGAIN}")
    return tensors


def _tensor(name: str, entry: object, stored: int) -> _Tensor:
    shape = json_parts.shape(json_parts.field(entry, "shape", list), name)
    word = json_parts.field(entry, "dtype", str)
    if word not in _DTYPES:
        raise DamagedFile(
            f"has a dtype that is not known, {word[:30]!r} of {name[:100]!r}: known are {', '.join(_DTYPES)}"
        )
    dtype, bits = _DTYPES[word]
    if stored * 8 != prod(shape) * bits:
        raise DamagedFile(
            f"is damaged: {name[:100]!r} in it takes {stored:,} bytes, and {prod(shape):,} elements of {word} do not: "
            f"{_AGAIN}"
        )
    return _Tensor(shape, dtype, stored)


def _kept_for(metadata: object) -> dict[str, str]:
    """What `safetensors.torch.save_model` says of tied tensors: the name that is left out, and that which is kept."""
    pairs = json_parts.of_kind(metadata, dict, "__metadata__").items()
    return {name: kept for name, kept in pairs if isinstance(kept, str)}


def _of_shards(path: Path) -> ExportedModel:
    index = shards.index(path)
    headers = index.each(_header)
    tensors = {shard: header.tensors for shard, header in headers.items()}
    mapped = index.mapped(tensors)
    return _model(
        {shard: replace(header, tensors=mapped[shard]) for shard, header in headers.items()},
        index.bytes,
        tuple(index.notes(tensors)),
    )
