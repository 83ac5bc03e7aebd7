"""Dimensions as ONNX files write them: sizes, or names and expressions of names (`T + 1`, `B*T`).

A name may be any text (`batch-size`, `B<i>`). Those of the inputs become one symbol each, everywhere in the graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from pytest_modelbudget.backends.exported.expressions import is_expression, renamed, symbols
from pytest_modelbudget.backends.exported.onnx.flat import unlike
from pytest_modelbudget.backends.exported.onnx.model import Graph, Value
from pytest_modelbudget.backends.exported.onnx.modules import all_nodes
from pytest_modelbudget.summary import Dim, TensorSpec

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPEN = re.compile(r"[\W_]*|-\d+")
_HYPHEN = re.compile(r"\w-\w")
_LONGEST = 60


def with_symbols(graph: Graph) -> Graph:
    """The flat graph with a symbol for each dimension of the inputs that is no expression of these."""
    texts = dict.fromkeys(_texts(graph.inputs))
    own = {text for text in texts if _SYMBOL.fullmatch(text)}
    used = {symbol: 1 for text in filter(is_expression, set(_all_texts(graph))) for symbol in symbols(text)}
    names = {text: _in_symbols(text, own, used) for text in texts if text not in own}
    return _with_dims(graph, names) if names else graph


def _in_symbols(text: str, own: set[str], used: dict[str, int]) -> Dim:
    """An expression, or a symbol that is not `used`; None for what names nothing.

    `batch-size` is a difference only where both are dimensions by themselves.
    """
    if _OPEN.fullmatch(text):
        return None
    if is_expression(text) and (not _HYPHEN.search(text) or own.issuperset(symbols(text))):
        return renamed(text, {})
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text[:_LONGEST]).strip("_") or "dim"
    return unlike(name if _SYMBOL.fullmatch(name) else f"dim_{name}", used)


def _all_texts(graph: Graph) -> Iterator[str]:
    for values in (graph.inputs, graph.outputs, graph.values):
        yield from _texts(values)
    for node in all_nodes(graph):
        for inner in node.graphs.values():
            yield from _texts((*inner.inputs, *inner.outputs, *inner.values))


def _texts(values: Iterable[Value]) -> Iterator[str]:
    for value in values:
        if value.spec is not None:
            yield from (dim for dim in value.spec.shape if isinstance(dim, str))


def _with_dims(graph: Graph, names: Mapping[str, Dim]) -> Graph:
    def rewritten(values: Iterable[Value]) -> tuple[Value, ...]:
        return tuple(Value(value.name, value.spec and _spec(value.spec, names)) for value in values)

    nodes = tuple(
        replace(node, graphs={key: _with_dims(inner, names) for key, inner in node.graphs.items()})
        if node.graphs
        else node
        for node in graph.nodes
    )
    inputs, outputs, inner_values = map(rewritten, (graph.inputs, graph.outputs, graph.values))
    return replace(graph, nodes=nodes, inputs=inputs, outputs=outputs, values=inner_values)


def _spec(spec: TensorSpec, names: Mapping[str, Dim]) -> TensorSpec:
    return replace(spec, shape=tuple(names.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape))


def own(spec: TensorSpec) -> TensorSpec:
    """The shape of an input: what is no expression of names is open."""
    return TensorSpec(tuple(renamed(dim, {}) for dim in spec.shape), spec.dtype)


def known_symbols(specs: Iterable[TensorSpec]) -> frozenset[str]:
    """The symbols of the inputs, which alone have sizes; others were made up by an exporter or for inference."""
    return frozenset(symbol for spec in specs for dim in spec.shape if isinstance(dim, str) for symbol in symbols(dim))


def in_known_symbols(spec: TensorSpec, known: frozenset[str]) -> TensorSpec:
    """The shape of a value, open where it does not follow from the inputs."""
    shape = tuple(
        None if isinstance(dim, str) and not known.issuperset(symbols(dim)) else dim for dim in own(spec).shape
    )
    return TensorSpec(shape, spec.dtype)


def merged(spec: TensorSpec | None, other: TensorSpec | None) -> TensorSpec | None:
    """What two sources say of a value; the first counts, the second fills what it leaves open."""
    if spec is None or other is None or len(spec.shape) != len(other.shape):
        return spec if spec is not None else other
    shape = tuple(dim if dim is not None else filled for dim, filled in zip(spec.shape, other.shape, strict=True))
    return TensorSpec(shape, spec.dtype)


def is_known(spec: TensorSpec | None) -> bool:
    """Whether all of a shape is known."""
    return spec is not None and None not in spec.shape


def bound(spec: TensorSpec, sizes: Mapping[str, Dim]) -> TensorSpec:
    """A shape with sizes for symbols."""
    return TensorSpec(tuple(renamed(dim, sizes) for dim in spec.shape), spec.dtype)
