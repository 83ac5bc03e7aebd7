"""What XNNPACK runs of a program: the graph that its delegate carries.

A delegate begins with a header that says where the graph is (`XNNHeader`); its constants follow the graph, or are
stored by their names beside the program. Fields by `backends/xnnpack/serialization/schema.fbs` of ExecuTorch. Shapes
have the channels last; filters are `(out, height, width, in)`, depthwise ones `(1, height, width, out)`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, prod
from struct import unpack_from

from pytest_modelbudget.backends.exported.executorch.container import Container, Span, damaged
from pytest_modelbudget.loading.flatbuffer import Table, identifier, root_table
from pytest_modelbudget.summary import ITEM_BYTES, TensorSpec

BACKEND = "XnnpackBackend"
_HEADER, _GRAPH, _HEADER_BYTES = b"XH00", b"XN01", 30
_MOST_GRAPH_BYTES = 64 * 2**20
_NO_OFFSET = 2**64 - 1
_NO_ID = 2**32 - 1
_MOST_DIMS = 16
_QUANTIZED = 2
_TRANSPOSED_FILTER = 1

_DTYPES = {
    1: "float32", 2: "float16", 3: "int8", 4: "uint8", 5: "int32", 6: "int8", 7: "int32", 8: "int4", 9: "int8",
    10: "int4", 11: "int8", 12: "int32", 13: "float32", 14: "bfloat16",
}  # fmt: skip

_PAIR, _ONE, _POOLED, _CONVOLVED = ((0, 1), 2), ((0,), 1), ((10,), 11), ((15, 16, 17), 18)
_NODES: dict[int, tuple[str, tuple[tuple[int, ...], int]]] = {
    1: ("Add", _PAIR), 2: ("FullyConnected", ((0, 1, 2), 3)), 3: ("Softmax", _ONE), 4: ("Sigmoid", _ONE),
    5: ("StaticTranspose", ((2,), 3)), 6: ("Clamp", _ONE), 7: ("Conv2d", _CONVOLVED), 8: ("Div", _PAIR),
    9: ("StaticResizeBilinear2D", ((2,), 3)), 10: ("StaticConstantPad", ((3,), 4)), 11: ("AvgPooling2d", _POOLED),
    12: ("Minimum", _PAIR), 13: ("DepthwiseConv2d", _CONVOLVED), 14: ("MaxPooling2d", _POOLED), 15: ("Multiply", _PAIR),
    16: ("Subtract", _PAIR), 17: ("Floor", _ONE), 18: ("Convert", _ONE), 19: ("GlobalAvgPooling2d", _ONE),
    20: ("StaticReshape", ((2,), 3)), 21: ("ArgMaxPooling2d", ((6,), 7)), 22: ("SquareRoot", _ONE),
    23: ("Ceiling", _ONE), 24: ("Hardswish", _ONE), 25: ("LeakyReLU", ((1,), 2)), 26: ("Maximum", _PAIR),
    27: ("Negate", _ONE), 28: ("Square", _ONE), 29: ("ELU", ((1,), 2)), 30: ("Abs", _ONE), 31: ("PReLU", _PAIR),
    32: ("Concatenate", ((1, 2), 5)), 33: ("Concatenate", ((1, 2, 3), 5)), 34: ("Concatenate", ((1, 2, 3, 4), 5)),
    35: ("StaticSlice", ((3,), 4)), 36: ("ScaledDotProductAttention", ((0, 1, 2, 3, 4), 5)),
    37: ("BatchMatrixMultiply", _PAIR), 38: ("Concatenate", ((1, 2, 3, 4, 7), 5)), 39: ("ConvTranspose2d", _CONVOLVED),
    40: ("ReciprocalSquareRoot", _ONE), 41: ("Log", _ONE), 42: ("Gelu", _ONE), 43: ("Tanh", _ONE), 44: ("Exp", _ONE),
    45: ("Sin", _ONE), 46: ("Copy", _ONE), 47: ("Cos", _ONE),
}  # fmt: skip
"""The name of each kind of node, the fields of what it reads, and the field of what it gives."""

_GROUPS_FIELD = 12
_FULLY_CONNECTED, _FLAGS_FIELD = 2, 4


@dataclass(frozen=True, slots=True)
class Node:
    """An operator, on values by their ids."""

    type: str
    inputs: tuple[int, ...]
    output: int
    attributes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Content:
    """What is stored for a value: its bytes, and where, the same for values that share it.

    `key` is its name in the program or, where it `is_outside`, beside it; empty for what the delegate stores itself.
    """

    place: Hashable
    bytes: int
    key: str = ""
    is_outside: bool = False
    is_scale: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes of a delegate; `externals` are the positions of its arguments by the ids of values.

    `scales` are the contents of scales, with their numbers and dtypes.
    """

    nodes: tuple[Node, ...]
    specs: Mapping[int, TensorSpec]
    constants: Mapping[int, Content]
    scales: tuple[tuple[Content, TensorSpec], ...]
    externals: Mapping[int, int]
    inputs: frozenset[int]

    @property
    def stored(self) -> Iterator[tuple[int, TensorSpec, Content]]:
        """All that is stored: by the ids of values, scales by numbers below 0."""
        yield from ((value, self.specs[value], content) for value, content in self.constants.items())
        yield from ((-1 - number, spec, content) for number, (content, spec) in enumerate(self.scales))


def graph(container: Container, span: Span, named: Mapping[str, int]) -> Graph | None:
    """The graph of the delegate whose bytes lie at `span`; None where it is of another version.

    `named` are the bytes of what the program stores by names.

    Raises:
        DamagedFile: it points outside itself.
    """
    begin, size = span
    if size < _HEADER_BYTES:
        return None
    head = container.read(begin, _HEADER_BYTES)
    if identifier(head) != _HEADER:
        return None
    graph_begin, graph_size, data_begin, data_size = unpack_from("<IIIQ", head, 10)
    if max(graph_begin + graph_size, data_begin + data_size) > size or graph_size > _MOST_GRAPH_BYTES:
        raise damaged(f"a delegate of {size:,} bytes says that it has more")
    data = container.read(begin + graph_begin, graph_size)
    if identifier(data) != _GRAPH:
        return None
    root = root_table(data, _GRAPH)
    return _Reader(_contents(root, size - data_begin, begin, named)).graph(root)


def _contents(root: Table, size: int, begin: int, named: Mapping[str, int]) -> list[Content]:
    """What is stored, by its index; `size` bytes of it in the delegate, which begins at `begin`."""
    contents = []
    for stored in root.tables(8):
        offset, length, key = stored.integer(0, "uint64"), stored.integer(1, "uint64"), stored.string(2) or ""
        if key:
            contents.append(Content(key, named.get(key, length), key, key not in named))
        elif offset != _NO_OFFSET and offset + length > size:
            raise damaged(f"a constant of a delegate ends at byte {offset + length:,} of {size:,}")
        else:
            contents.append(Content((begin, offset), length))
    return contents


@dataclass(frozen=True, slots=True)
class _Reader:
    contents: Sequence[Content]

    def graph(self, root: Table) -> Graph | None:
        """The graph, None where it has a node that is not known."""
        tensors = {tensor.integer(6, "uint32"): (tensor, quant) for tensor, quant in _tensors(root)}
        specs = {value: _spec(tensor) for value, (tensor, _) in tensors.items()}
        nodes = [_node(*node.union(0)) for node in root.tables(1)]
        if any(node is None for node in nodes):
            return None
        inputs = frozenset(root.integers(4, "uint32"))
        externals = {
            value: tensors[value][0].integer(4, "uint32")
            for value in (*inputs, *root.integers(5, "uint32"))
            if value in tensors
        }
        return Graph(
            nodes=tuple(node for node in nodes if node is not None),
            specs=specs,
            constants={
                value: self._content(index, specs[value])
                for value, (tensor, _) in tensors.items()
                if (index := tensor.integer(3, "uint32"))
            },
            scales=tuple(scale for _, quant in tensors.values() for scale in self._scales(*quant)),
            externals=externals,
            inputs=inputs,
        )

    def _content(self, index: int, spec: TensorSpec) -> Content:
        if index >= len(self.contents):
            raise damaged(f"a delegate names constant {index:,}, and has {len(self.contents):,}")
        content = self.contents[index]
        needed = ceil(Fraction(prod(_sizes(spec))) * ITEM_BYTES[spec.dtype])
        if needed > content.bytes:
            raise damaged(f"a constant of a delegate of {needed:,} bytes has {content.bytes:,}")
        return content

    def _scales(self, kind: int, quant: Table | None) -> Iterator[tuple[Content, TensorSpec]]:
        """The scales that are stored apart: of channels float32, of groups bfloat16."""
        fields = {1: (2, 3, "float32"), 4: (4, 5, "bfloat16")}.get(kind)
        if quant is None or fields is None:
            return
        index, number = (quant.integer(field, "uint32") for field in fields[:2])
        if index:
            spec = TensorSpec((number,), fields[2])
            yield replace(self._content(index, spec), is_scale=True), spec


def _tensors(root: Table) -> Iterator[tuple[Table, tuple[int, Table | None]]]:
    """Each tensor with how it is quantised."""
    for value in root.tables(2):
        kind, tensor = value.union(0)
        quant: tuple[int, Table | None] = (0, None)
        if tensor is not None and kind == _QUANTIZED:
            quant, tensor = tensor.union(1), tensor.table(0)
        if tensor is None:
            raise damaged("a value of a delegate is empty")
        yield tensor, quant


def _spec(tensor: Table) -> TensorSpec:
    shape, code = tensor.integers(2, "uint32"), tensor.integer(0, "int16")
    if len(shape) > _MOST_DIMS or code not in _DTYPES:
        raise damaged(f"a value of a delegate has {len(shape)} dimensions and the dtype {code}")
    return TensorSpec(shape, _DTYPES[code])


def _sizes(spec: TensorSpec) -> Iterator[int]:
    yield from (dim for dim in spec.shape if isinstance(dim, int))


def _node(kind: int, content: Table | None) -> Node | None:
    if content is None or kind not in _NODES:
        return None
    name, (read, written) = _NODES[kind]
    inputs = tuple(value for field in read if (value := content.integer(field, "uint32")) != _NO_ID)
    if kind == _FULLY_CONNECTED and content.integer(_FLAGS_FIELD, "uint32") & _TRANSPOSED_FILTER:
        name = "FullyConnectedTransposed"
    attributes = {"groups": content.integer(_GROUPS_FIELD, "uint32")} if read == _CONVOLVED[0] else {}
    return Node(f"xnnpack.{name}", inputs, content.integer(written, "uint32"), attributes)
