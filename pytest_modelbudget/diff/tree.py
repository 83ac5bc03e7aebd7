"""The rows of a summary as a tree by their paths, each node with fingerprints of everything below it.

Fingerprints are small integers given out by one `Ids` table, so that equal numbers mean equal contents. They
hold neither the node's own name nor its connections, so they survive a rename and a move.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from pytest_modelbudget.diff.words import numbered
from pytest_modelbudget.summary import Layer, Summary, Weight

_DEEPEST = 60
"""Parts of a path that make a level each; what is deeper stays one name."""

ROOT = "(root)"
"""The path of the row that is the model itself."""

_SEPARATOR = re.compile(r"(?=[./])")


class Level(IntEnum):
    """What a fingerprint is of, from all to little."""

    ALL = 0
    SHAPES = 1
    BUT_INPUTS = 2
    """Shapes without the dimension of the inputs, which is all that an inserted layer changes behind it."""
    WEIGHTS = 3
    """Names of weights."""
    TYPE = 4


@dataclass(eq=False, slots=True, repr=False)
class Node:
    """A part of a path: `row` is None where no layer has just this path.

    `token` is its last part; a `loose` one is a number, or ends in one, or was made up by Keras: it says little
    about which row it is. `prints` has one fingerprint for each `Level`.
    """

    path: str
    token: str
    parent: Node | None
    row: Layer | None = None
    position: int = 0
    children: list[Node] = field(default_factory=list)
    loose: bool = False
    size: int = 0
    weighted: bool = False
    prints: tuple[int, ...] = ()

    def below(self) -> Iterator[Node]:
        """The node and all nodes inside it, parents first."""
        yield self
        for child in self.children:
            yield from child.below()


class Ids:
    """Gives equal keys equal numbers."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def __call__(self, key: Hashable) -> int:
        return self._known.setdefault(key, len(self._known))


def tokens(path: str) -> list[str]:
    """`h.0.attn` as `h`, `.0`, `.attn`: joined they are the path again."""
    parts = _SEPARATOR.split(path)
    return parts if len(parts) <= _DEEPEST else [*parts[: _DEEPEST - 1], "".join(parts[_DEEPEST - 1 :])]


def name(token: str) -> str:
    """A token without the separator before it."""
    return token[1:] if token[:1] in (".", "/") else token


def grow(summary: Summary, ids: Ids) -> Node:
    """The tree of a summary; its root has a row when the model itself holds weights."""
    root = Node("", "", None)
    nodes: dict[str, Node] = {}
    for position, layer in enumerate(summary.layers):
        if layer.path == ROOT:
            root.path, root.row, root.position = ROOT, layer, position
            continue
        parent, path = root, ""
        for token in tokens(layer.path):
            path += token
            node = nodes.get(path)
            if node is None:
                node = nodes[path] = Node(path, name(token), parent, position=position)
                parent.children.append(node)
            parent = node
        parent.row = layer
        parent.position = position
    _fingerprint(root, ids, summary.framework == "keras")
    return root


def _fingerprint(node: Node, ids: Ids, keras: bool) -> None:
    for child in node.children:
        _fingerprint(child, ids, keras)
    row = node.row
    node.loose = _loose(node.token, row, keras)
    node.size = (row is not None) + sum(child.size for child in node.children)
    node.weighted = bool(row is not None and row.weights) or any(child.weighted for child in node.children)
    inside: list[tuple[Hashable, ...]] = [
        tuple((_told(child), child.prints[level]) for child in node.children) for level in Level
    ]
    if row is None:
        own: tuple[Hashable, ...] = (None,) * len(Level)
    else:
        own = (
            (row.type, row.outputs, tuple(map(_facts, row.weights)), row.calls, row.container),
            (row.type, tuple((weight.name, weight.shape, weight.role) for weight in row.weights)),
            (row.type, tuple((weight.name, _but_inputs(weight.shape, keras)) for weight in row.weights)),
            (row.type, tuple(weight.name for weight in row.weights)),
            row.type,
        )
    inside[Level.TYPE] = (bool(node.children),)
    node.prints = tuple(ids((level, own[level], inside[level])) for level in Level)


def _but_inputs(shape: tuple[int, ...], keras: bool) -> tuple[int, ...]:
    """A shape without its input dimension: Keras `(k..., in, out)`, torch `(out, in, k...)`."""
    place = len(shape) - 2 if keras else 1
    return shape[:place] + shape[place + 1 :] if len(shape) > 1 else shape


def _facts(w: Weight) -> Hashable:
    return (w.name, w.shape, w.dtype, w.trainable, w.role, w.tied_to is None, w.packed_bytes)


def _told(node: Node) -> str:
    return "#" if node.loose else node.token


def _loose(token: str, row: Layer | None, keras: bool) -> bool:
    if numbered(token):
        return True
    if row is None:
        return False
    return token == row.type or (keras and token == _snake(row.type))


def _snake(kind: str) -> str:
    """The name that Keras gives a layer of this type: `ReLU` is `re_lu`."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
