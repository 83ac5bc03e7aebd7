"""ONNX files for tests: graphs by `onnx.helper`, stored ones with data files of zeros, and bytes that no library writes."""

from __future__ import annotations

import gzip
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

_ITEM_BYTES = {
    TensorProto.FLOAT: 4, TensorProto.BFLOAT16: 2, TensorProto.FLOAT8E5M2: 1, TensorProto.INT8: 1, TensorProto.UINT8: 1,
}  # fmt: skip
DATA = Path(__file__).parents[2] / "data" / "exported"


def stored(name: str, folder: Path) -> Path:
    """The file of `make_onnx.py` with that name, and a data file of the size of its weights."""
    path = folder / f"{name}.onnx"
    path.write_bytes(gzip.decompress((DATA / f"{name}.onnx.gz").read_bytes()))
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
    ]
    ends = [int(entry["offset"]) + int(entry["length"]) for entry in entries if entry]
    with (folder / f"{name}.onnx.data").open("wb") as file:
        file.truncate(max(ends))
    return path


def graph(
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    weights: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """A graph of float32: ports and weights by their shapes (None: not said), a weight that is no shape as it is."""
    ports, ends = ([value(*port) for port in group.items()] for group in (inputs, outputs))
    tensors = [weight(name, *shape) if isinstance(shape, tuple) else shape for name, shape in (weights or {}).items()]
    return helper.make_graph(nodes, "graph", ports, ends, tensors, **more)


def value(name: str, shape: Any, dtype: int = TensorProto.FLOAT) -> Any:
    """A value with its shape."""
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> Any:
    """A tensor of zeros."""
    return TensorProto(name=name, data_type=dtype, dims=shape, raw_data=bytes(_ITEM_BYTES[dtype] * prod(shape)))


def number(name: str, *values: int, scalar: bool = False, dtype: int = TensorProto.INT64) -> Any:
    """A tensor of whole numbers."""
    return helper.make_tensor(name, dtype, [] if scalar else [len(values)], values)


def save(path: Path, graph: Any, *, functions: tuple[Any, ...] = (), opset: int = 18, **more: Any) -> Path:
    """Write a model of a graph."""
    domains = {node.domain for node in graph.node} | {function.domain for function in functions}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains if domain)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, functions=functions, **more).SerializeToString())
    return path


def field(number: int, data: bytes) -> bytes:
    """A field of bytes in the wire format."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(number: int) -> bytes:
    """A number in the wire format."""
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


HEAD = b"\x08\x0a" + field(8, b"\x10\x12")
"""The version of the format, and that of the operators."""


def raw_tensor(dims: tuple[int, ...], rest: bytes, dtype: int = 1, name: bytes = b"w") -> bytes:
    """A tensor whose fields say what they like."""
    shape = b"".join(b"\x08" + varint(dim & (1 << 64) - 1) for dim in dims)
    return field(5, shape + b"\x10" + varint(dtype) + field(8, name) + rest)


def external(location: str, offset: int = 0, length: int = 16) -> bytes:
    """The fields of a tensor that lies in another file."""
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    return b"\x70\x01" + b"".join(
        field(13, field(1, key.encode()) + field(2, value.encode())) for key, value in entries.items()
    )
