"""One graph with names of its own for everything: functions are put where they are called; scopes share no names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_modelbudget.backends.exported.graph import Module
from pytest_modelbudget.backends.exported.onnx.model import (
    DEEPEST,
    MOST_NODES,
    Attribute,
    Function,
    FunctionKey,
    Graph,
    Node,
    Value,
)  # fmt: skip
from pytest_modelbudget.backends.exported.onnx.wire import damaged
from pytest_modelbudget.backends.model_files import DamagedFile

_MOST_NAMES = 500_000
"""Of inputs, outputs and values of functions, for all their calls together."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """What names mean in a graph: those of its own, else what they mean around it."""

    names: dict[str, str]
    outer: _Scope | None = None

    def find(self, name: str) -> str:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return name


@dataclass(frozen=True, slots=True)
class _Call:
    """The functions around a node: as modules, what names in them begin with, and the attributes of the innermost."""

    modules: tuple[Module, ...] = ()
    prefix: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(slots=True)
class Flattener:
    """Makes one graph of a graph and the functions that it calls.

    `modules` are the functions around each node, by its name; `values` what functions say of values in them.
    """

    functions: Mapping[FunctionKey, Function]
    modules: dict[str, tuple[Module, ...]] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    _value_names: dict[str, int] = field(default_factory=dict)
    _node_names: dict[str, int] = field(default_factory=dict)
    _nodes_left: int = MOST_NODES
    _names_left: int = _MOST_NAMES
    _depth: int = 0

    def flat(self, graph: Graph) -> Graph:
        """The graph in one.

        Raises:
            DamagedFile: functions call each other in a circle, or too often, or a name stands for two things.
        """
        flat = self._graph(graph, None, _Call())
        return replace(flat, values=(*flat.values, *self.values))

    def _graph(self, graph: Graph, outer: _Scope | None, call: _Call) -> Graph:
        self._depth += 1
        if self._depth > 2 * DEEPEST:
            raise damaged(f"more than {2 * DEEPEST} graphs and functions lie in each other")
        inputs, tensors = [value.name for value in graph.inputs], [tensor.name for tensor in graph.tensors]
        _check_unlike(tensors)
        _check_unlike([*inputs, *_made(graph.nodes)])
        _check_unlike([*tensors, *_made(graph.nodes)])
        scope = _Scope(self._own_names([*inputs, *tensors, *_made(graph.nodes)], call.prefix), outer)
        flat = Graph(
            tuple(self._nodes(graph.nodes, scope, call)),
            tuple(replace(tensor, name=scope.find(tensor.name)) for tensor in graph.tensors),
            _in_scope(graph.inputs, scope),
            _in_scope(graph.outputs, scope),
            _in_scope(graph.values, scope),
            graph.metadata,
        )
        self._depth -= 1
        return flat

    def _own_names(self, names: Iterable[str], prefix: str) -> dict[str, str]:
        return {name: unlike(f"{prefix}{name}", self._value_names) for name in dict.fromkeys(names)}

    def _nodes(self, nodes: Iterable[Node], scope: _Scope, call: _Call) -> Iterator[Node]:
        for node in nodes:
            self._nodes_left -= 1
            if self._nodes_left < 0:
                raise DamagedFile(f"runs more than {MOST_NODES:,} operators: split the model, or export it again")
            function = self.functions.get((node.domain, node.type, node.overload))
            node = replace(
                node,
                name=unlike(f"{call.prefix}{node.name or node.type}", self._node_names),
                inputs=tuple([name and scope.find(name) for name in node.inputs]),
                outputs=tuple([name and scope.find(name) for name in node.outputs]),
                attributes=_attributes(node, call.attributes),
                graphs={key: self._graph(graph, scope, call) for key, graph in node.graphs.items()},
            )
            if function is not None:
                yield from self._called(function, node, call)
                continue
            self.modules[node.name] = call.modules
            yield node

    def _called(self, function: Function, node: Node, call: _Call) -> Iterator[Node]:
        _check_call(function, node, call)
        self._names_left -= len(function.inputs) + len(function.outputs) + len(function.values) + len(function.defaults)
        if self._names_left < 0:
            raise DamagedFile(f"has functions of more than {_MOST_NAMES:,} values: split the model, or export it again")
        made = _made(function.nodes)
        _check_unlike([*function.inputs, *made])
        prefix = f"{node.name}/"
        missing = ("",) * len(function.inputs)
        names = dict(zip(function.inputs, (*node.inputs, *missing), strict=False))
        targets = {name: target for name, target in zip(function.outputs, node.outputs, strict=False) if target}
        names |= {name: target for name, target in targets.items() if name not in names}
        names |= self._own_names((name for name in made if name not in names), prefix)
        scope = _Scope(names)
        inner = _Call(
            (*call.modules, Module(_path(node, call), function.name)), prefix, {**function.defaults, **node.attributes}
        )
        yield from self._nodes(function.nodes, scope, inner)
        for name, target in targets.items():
            if names[name] != target:
                yield Node("Identity", "", (names[name],), (target,), unlike(f"{prefix}{name}", self._node_names))
        self.values += _in_scope(function.values, scope)


def _path(node: Node, call: _Call) -> str:
    """The path of a called function among modules."""
    own = node.name.removeprefix(call.prefix).strip("/")
    return f"{call.modules[-1].path}.{own}" if call.modules else own


def _check_call(function: Function, node: Node, call: _Call) -> None:
    if len(call.modules) >= DEEPEST:
        raise damaged(f"the function {function.name!r} calls itself, or lies in more than {DEEPEST} others")
    if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
        raise damaged(f"the function {function.name!r} is called with more than its inputs and outputs")


def _made(nodes: Sequence[Node]) -> list[str]:
    return [name for node in nodes for name in node.outputs if name]


def _in_scope(values: Iterable[Value], scope: _Scope) -> tuple[Value, ...]:
    return tuple(Value(scope.find(value.name), value.spec) for value in values)


def unlike(name: str, taken: dict[str, int]) -> str:
    """`name`, or with a number where something has it."""
    unique = name
    while unique in taken:
        taken[name] += 1
        unique = f"{name}_{taken[name]}"
    taken[unique] = 1
    return unique


def _check_unlike(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        met: set[str] = set()
        twice = next(name for name in names if name in met or met.add(name))  # type: ignore[func-returns-value]
        raise damaged(f"two values have the name {twice!r}")


def _attributes(node: Node, values: Mapping[str, Attribute]) -> Mapping[str, Attribute]:
    """The attributes of a node, with those that it takes from the function's."""
    if not node.references:
        return node.attributes
    return {**node.attributes, **{key: values[name] for key, name in node.references.items() if name in values}}
