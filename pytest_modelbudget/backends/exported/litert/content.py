"""The content of a LiteRT file as plain data, each index and size checked; of weights only their place is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from pytest_modelbudget.backends.exported.litert import schema
from pytest_modelbudget.backends.exported.litert.external import ExternalBuffers, Slice
from pytest_modelbudget.backends.exported.litert.options import attributes
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.loading.flatbuffer import InvalidFlatbuffer, Table, root_table
from pytest_modelbudget.summary import ITEM_BYTES

CURE = "fetch it again, or convert the model again"

_MOST_DIMENSIONS = 64
_MOST_VALUES = 64
"""Elements of a constant of whole numbers (a shape, axes, a limit of a loop) up to which they are read."""

_WHOLE_NUMBERS = {"int32": 4, "int64": 8}
_OF_ANY_SIZE = frozenset({"string", "resource", "variant"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a graph.

    `shape` is what the file plans for, `open_axes` are those whose size is left open; one that is not `shaped` has no
    shape in the file, or is a single number. `stored` says where its elements lie, None for one that is made when the
    model runs; `values` are those of a small constant of whole numbers.
    """

    name: str
    shape: tuple[int, ...]
    open_axes: tuple[int, ...]
    dtype: str
    stored: Slice | None = None
    values: tuple[int, ...] | None = None
    quantized: bool = False
    variable: bool = False
    sparse: bool = False
    shaped: bool = True

    @property
    def elements(self) -> int:
        """How many there are at the shape that the file plans for."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Step:
    """An operator of a graph: its type, and the indices of its tensors, -1 for one that is left out."""

    type: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any]
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph: its tensors, which of them it is given and gives, and its operators in the order they run."""

    name: str
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """All of a file; the first graph is the model. `signatures` are names and the indices of their graphs."""

    graphs: tuple[Graph, ...]
    signatures: tuple[tuple[str, int], ...]
    file_bytes: int


def read_content(path: Path) -> Content:
    """What the file at `path` holds.

    Raises:
        DamagedFile: it is no LiteRT file, or one with an offset, index or size that does not fit.
    """
    try:
        with _mapped(path) as data:
            return _Reader(data, path).content()
    except InvalidFlatbuffer as error:
        raise DamagedFile(f"is damaged: {error}: {CURE}") from None


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file:
        try:
            data = mmap(file.fileno(), 0, access=ACCESS_READ)
        except ValueError:  # nothing can be mapped
            raise DamagedFile(f"is empty: {CURE}") from None
        with data:
            yield data


class _Reader:
    """Tables of one file as plain data."""

    def __init__(self, data: mmap, path: Path) -> None:
        self._data = data
        self._model = root_table(data, schema.IDENTIFIER)
        self._external = ExternalBuffers(self._model, path)
        self._buffers = [self._slice(buffer) for buffer in self._model.tables(schema.Model.BUFFERS)]
        self._codes = [_code(code) for code in self._model.tables(schema.Model.CODES)]

    def content(self) -> Content:
        graphs = tuple(self._graph(graph) for graph in self._model.tables(schema.Model.SUBGRAPHS))
        if not graphs:
            raise DamagedFile(f"is damaged: it holds no graph: {CURE}")
        signatures = tuple(
            (signature.string(schema.Signature.KEY) or "", signature.integer(schema.Signature.SUBGRAPH, "uint32"))
            for signature in self._model.tables(schema.Model.SIGNATURES)
        )
        for name, graph in signatures:
            _checked(graph, len(graphs), f"signature {name!r}", "graph")
        return Content(graphs, signatures, len(self._data) + self._external.file_bytes)

    def _slice(self, buffer: Table) -> Slice | None:
        begin, size = buffer.span(schema.Buffer.DATA) or (0, 0)
        if not size and (offset := buffer.integer(schema.Buffer.OFFSET, "uint64")) > 1:
            begin, size = offset, buffer.integer(schema.Buffer.SIZE, "uint64")
            if begin + size > len(self._data):
                raise DamagedFile(
                    f"is damaged: a buffer of {size:,} bytes begins at byte {begin:,}, and the file has "
                    f"{len(self._data):,}: {CURE}"
                )
        return Slice("", begin, size) if size else None

    def _graph(self, graph: Table) -> Graph:
        name = graph.string(schema.SubGraph.NAME) or ""
        tensors = tuple(
            self._tensor(tensor, index) for index, tensor in enumerate(graph.tables(schema.SubGraph.TENSORS))
        )
        steps = tuple(self._step(step, len(tensors)) for step in graph.tables(schema.SubGraph.OPERATORS))
        inputs, outputs = (
            _indices(graph, field, len(tensors), f"graph {name!r}")
            for field in (schema.SubGraph.INPUTS, schema.SubGraph.OUTPUTS)
        )
        return Graph(name, tensors, inputs, outputs, steps)

    def _tensor(self, table: Table, index: int) -> Tensor:
        name = table.string(schema.Tensor.NAME) or ""
        shown = f"tensor {name or index!r}"
        shape = table.integers(schema.Tensor.SHAPE)
        signature = table.integers(schema.Tensor.SIGNATURE) or shape
        if len(shape) > _MOST_DIMENSIONS or len(signature) != len(shape):
            raise DamagedFile(f"is damaged: {shown} has {len(shape)} dimensions and {len(signature)} named: {CURE}")
        if min((*shape, *signature), default=0) < -1:
            raise DamagedFile(f"is damaged: {shown} has a negative size in {list(shape)}: {CURE}")
        quantization = table.table(schema.Tensor.QUANTIZATION)
        scales = quantization and quantization.span(schema.Quantization.SCALE, 4)
        tensor = Tensor(
            name,
            tuple(1 if size == -1 else size for size in shape),
            tuple(axis for axis, sizes in enumerate(zip(shape, signature, strict=True)) if -1 in sizes),
            _dtype(table, shown),
            self._stored(table, shown),
            quantized=bool(scales and scales[1]),
            variable=bool(table.integer(schema.Tensor.IS_VARIABLE, "bool")),
            sparse=table.table(schema.Tensor.SPARSITY) is not None,
            shaped=bool(shape) or bool(table.integer(schema.Tensor.HAS_RANK, "bool")),
        )
        return self._checked_constant(tensor, shown) if tensor.stored else tensor

    def _stored(self, table: Table, shown: str) -> Slice | None:
        if external := table.integer(schema.Tensor.EXTERNAL_BUFFER, "uint32"):
            return self._external.slice(external, shown)
        index = table.integer(schema.Tensor.BUFFER, "uint32")
        return self._buffers[_checked(index, len(self._buffers), shown, "buffer")] if self._buffers else None

    def _checked_constant(self, tensor: Tensor, shown: str) -> Tensor:
        """`tensor`, whose bytes are as many as its shape and type make, with its values where they are few."""
        assert tensor.stored is not None
        size = tensor.stored.size
        if tensor.sparse or tensor.dtype in _OF_ANY_SIZE:
            return tensor
        expected = packed_bytes(tensor)
        unpacked = ITEM_BYTES[tensor.dtype] < 1 and size == tensor.elements
        if size != expected and not unpacked:
            raise DamagedFile(
                f"is damaged: {shown} of {tensor.dtype} {list(tensor.shape)} takes {expected:,} bytes, and the file "
                f"has {size:,} of it: {CURE}"
            )
        return tensor if tensor.stored.file else _with_values(tensor, self._data)

    def _step(self, table: Table, tensors: int) -> Step:
        code = table.integer(schema.Operator.CODE, "uint32")
        name, custom = self._codes[_checked(code, len(self._codes), "an operator", "code")]
        inputs, outputs = (
            _indices(table, field, tensors, f"operator {name}")
            for field in (schema.Operator.INPUTS, schema.Operator.OUTPUTS)
        )
        return Step(name, inputs, outputs, {} if custom else attributes(name, table), custom)


def _code(table: Table) -> tuple[str, bool]:
    """The name of an operator, and whether it is a custom one, which has a name of its own."""
    old = table.integer(schema.Code.OLD_BUILTIN, "int8")
    code = max(old, table.integer(schema.Code.BUILTIN))
    if code == schema.CUSTOM:
        return table.string(schema.Code.CUSTOM_NAME) or "CUSTOM", True
    if 0 <= code < len(schema.OPERATORS):
        return schema.OPERATORS[code], False
    return f"BUILTIN_{code}", True


def _dtype(table: Table, shown: str) -> str:
    number = table.integer(schema.Tensor.TYPE, "int8")
    if not 0 <= number < len(schema.DTYPES):
        raise DamagedFile(
            f"has the type {number} for {shown}, which is none of the {len(schema.DTYPES)} that are known: convert the "
            "model again for an older version, or update this package"
        )
    return schema.DTYPES[number]


def packed_bytes(tensor: Tensor) -> int:
    """The bytes that the elements of a tensor take, those below a byte packed."""
    return -int(-tensor.elements * ITEM_BYTES[tensor.dtype] // 1)


def _with_values(tensor: Tensor, data: mmap) -> Tensor:
    size = _WHOLE_NUMBERS.get(tensor.dtype)
    if size is None or tensor.elements > _MOST_VALUES or tensor.stored is None:
        return tensor
    begin = tensor.stored.begin
    content = data[begin : begin + tensor.stored.size]
    values = tuple(
        int.from_bytes(content[start : start + size], "little", signed=True) for start in range(0, len(content), size)
    )
    return replace(tensor, values=values)


def _indices(table: Table, field: int, tensors: int, shown: str) -> tuple[int, ...]:
    """Indices of tensors, -1 for one that is left out."""
    indices = table.integers(field)
    for index in indices:
        if index != -1:
            _checked(index, tensors, shown, "tensor")
    return indices


def _checked(index: int, count: int, shown: str, kind: str) -> int:
    if not 0 <= index < count:
        raise DamagedFile(f"is damaged: {shown} has the {kind} {index:,}, and the file has {count:,}: {CURE}")
    return index
