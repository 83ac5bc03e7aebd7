"""The parts of an ONNX model, as the file has them: graphs, nodes, functions; from the messages of onnx.proto."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.backends.exported.onnx.tensors import (
    DTYPES,
    DataFolder,
    Tensor,
    dims_of_shape,
    sparse_tensor,
    tensor,
)  # fmt: skip
from pytest_modelbudget.backends.exported.onnx.wire import Message, Span, Wire, damaged
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary import TensorSpec

FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
"""Kinds of attributes whose values are read."""

DEEPEST = 32
"""Graphs in graphs; protocol buffers of this depth are refused by onnx itself."""

MOST_NODES = 50_000
"""So many, and so many tensors, take about 3 s; the largest language models have a third of them."""

FunctionKey = tuple[str, str, str]
"""Domain, name and overload."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a node: a value, a tensor or a graph, as its `kind` says; None where it is too large or of a
    kind that is not read."""

    kind: int
    value: Any


@dataclass(frozen=True, slots=True)
class Node:
    """An operator, or a call of a function.

    `references` are attributes that have the value of a function's, `graphs` those that it runs.
    """

    type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str = ""
    overload: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value:
    """A value with a name; `spec` is None where nothing is said of its shape, or it is no tensor."""

    name: str
    spec: TensorSpec | None


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes, and the tensors and values around them."""

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: tuple[Value, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the file's own; `defaults` are the values of attributes that a call may leave out."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    defaults: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class Model:
    """A whole file."""

    ir_version: int
    producer: str
    opsets: Mapping[str, int]
    graph: Graph
    functions: Mapping[FunctionKey, Function]


_METADATA = (
    "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy",
    "pkg.torch.export.ExportedProgram.graph_signature",
)  # fmt: skip
"""What is read of metadata: no paths and lines of the exporter's machine."""

_LONGEST_METADATA = 1 << 22


@dataclass(slots=True)
class Decoder:
    """Makes parts of messages; checks tensors against the folder of the file."""

    folder: DataFolder
    nodes_left: int = MOST_NODES
    tensors_left: int = MOST_NODES

    def model(self, wire: Wire, span: Span) -> Model:
        """The model of a whole file.

        Raises:
            DamagedFile: it is none.
        """
        message = wire.message(span)
        graphs = list(message.messages(7, "the graph"))
        opsets = {domain(part.text(1)): part.number(2) for part in message.messages(8, "the file")}
        if len(graphs) != 1 or not opsets:
            raise DamagedFile(
                f"is no ONNX model: it has {len(graphs)} graphs and {len(opsets)} sets of operators: export it again"
            )
        functions = dict(map(self.function, message.messages(25, "a function")))
        producer = " ".join(text for text in (message.text(2), message.text(3)) if text)
        return Model(message.number(1), producer, opsets, self.graph(graphs[0], 0), functions)

    def graph(self, message: Message, depth: int) -> Graph:
        """A graph, in `depth` others."""
        if depth > DEEPEST:
            raise damaged(f"more than {DEEPEST} graphs lie in each other")
        self.tensors_left -= len(message.spans(5)) + len(message.spans(15))
        if self.tensors_left < 0:
            raise DamagedFile(f"has more than {MOST_NODES:,} tensors: split the model, or export it again")
        sparse = [sparse_tensor(part, self.folder) for part in message.messages(15, "a sparse tensor")]
        return Graph(
            nodes=self.nodes(message, 1, depth),
            tensors=(*(tensor(part, self.folder) for part in message.messages(5, "a tensor")), *sparse),
            inputs=tuple(map(value, message.messages(11, "an input"))),
            outputs=tuple(map(value, message.messages(12, "an output"))),
            values=tuple(map(value, message.messages(13, "a value"))),
            metadata=_metadata(message, 16),
        )

    def function(self, message: Message) -> tuple[FunctionKey, Function]:
        """A function with its key."""
        name = message.text(1)
        function = Function(
            name,
            message.texts(4),
            message.texts(5),
            self.nodes(message, 7, 0),
            tuple(map(value, message.messages(12, "a value"))),
            {key: default for key, _, default in self.attributes(message, 11, 0, name)},
        )
        return (domain(message.text(10)), name, message.text(13)), function

    def nodes(self, message: Message, number: int, depth: int) -> tuple[Node, ...]:
        """The nodes of a graph or function."""
        spans = message.spans(number)
        self.nodes_left -= len(spans)
        if self.nodes_left < 0:
            raise DamagedFile(f"has more than {MOST_NODES:,} operators: split the model, or export it again")
        return tuple(self.node(part, depth) for part in message.messages(number, "an operator"))

    def node(self, message: Message, depth: int) -> Node:
        """One node."""
        name, type_ = message.text(3), message.text(4)
        message.what = f"the operator {name or type_!r}"
        if not type_:
            raise damaged(f"{message.what} has no type")
        attributes = list(self.attributes(message, 5, depth, message.what))
        return Node(
            type=type_,
            domain=domain(message.text(7)),
            inputs=message.texts(1),
            outputs=message.texts(2),
            name=name,
            overload=message.text(8),
            attributes={key: found for key, reference, found in attributes if not reference and found.kind != GRAPH},
            references={key: reference for key, reference, _ in attributes if reference},
            graphs={key: found.value for key, _, found in attributes if found.kind == GRAPH and found.value},
            metadata=_metadata(message, 9),
        )

    def attributes(self, message: Message, number: int, depth: int, what: str) -> Iterator[tuple[str, str, Attribute]]:
        """Name, the function's attribute that it refers to, and value of each."""
        for part in message.messages(number, what):
            name = part.text(1)
            yield name, part.text(21), self.attribute(part, f"{what}, {name}", depth)

    def attribute(self, message: Message, what: str, depth: int) -> Attribute:
        """One attribute; files of the first versions do not say its kind."""
        message.what = what
        kind = message.number(20) or next((kind for kind, number in _FIELDS.items() if number in message.fields), 0)
        match kind:
            case 4 if (span := message.last(5)) is not None:
                return Attribute(TENSOR, tensor(message.wire.message(span, what), self.folder))
            case 5 if (span := message.last(6)) is not None:
                return Attribute(GRAPH, self.graph(message.wire.message(span, what), depth + 1))
            case 11 if (span := message.last(22)) is not None:
                return Attribute(TENSOR, sparse_tensor(message.wire.message(span, what), self.folder))
        return Attribute(kind, _plain(message, kind))


_FIELDS = {FLOAT: 2, INT: 3, STRING: 4, TENSOR: 5, GRAPH: 6, 11: 22, FLOATS: 7, INTS: 8, STRINGS: 9}
"""Where the value of each kind of attribute lies."""


def _plain(message: Message, kind: int) -> Any:
    match kind:
        case 1:
            return message.float32(2)
        case 2:
            return message.number(3)
        case 3:
            span = message.last(4) or (0, 0)
            return message.text(4) if span[1] - span[0] < 10_000 else None
        case 6:
            return message.floats(7)
        case 7:
            return message.numbers(8)
        case 8:
            return message.texts(9) if len(message.spans(9)) < 1_000 else None
    return None


def domain(name: str) -> str:
    """The default domain has two names."""
    return "" if name == "ai.onnx" else name


def value(message: Message) -> Value:
    """A value, with its shape and type where it is a tensor that says them."""
    name = message.text(1)
    message.what = f"the value {name!r}"
    span = message.last(2)
    return Value(name, None if span is None else _spec(message.wire.message(span, message.what)))


def _spec(message: Message) -> TensorSpec | None:
    for part in message.messages(1, message.what):
        if part.number(1) and part.number(1) not in DTYPES:
            raise damaged(f"{message.what} has the unknown type {part.number(1)}")
        if part.number(1) and (shape := part.last(2)) is not None:
            dims = tuple(dims_of_shape(message.wire.message(shape, message.what)))
            return TensorSpec(dims, DTYPES[part.number(1)][0])
    return None


def _metadata(message: Message, number: int) -> dict[str, str]:
    """The entries that are read; others are not even decoded."""
    entries = {}
    for part in message.messages(number, "metadata"):
        if (key := part.raw(1).decode("utf-8", "replace")) in _METADATA:
            entries[key] = part.raw(2, _LONGEST_METADATA).decode("utf-8", "replace")
    return entries
