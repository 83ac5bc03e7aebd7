"""The rows of a summary as a tree by their paths, each node with fingerprints of everything below it.

Fingerprints are small integers given out by one `IdTable` table, so that equal numbers mean equal contents. They
hold neither the node's own name nor its connections, so they survive a rename and a move.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from pytest_modelbudget.diff.words import split_number
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
class PathNode:
    """A part of a path: `row` is None where no layer has just this path.

    `token` is its last part; a `loose` one is a number, or ends in one, or was made up by Keras: it says little
    about which row it is. `prints` has one fingerprint for each `Level`.
    """

    path: str
    token: str
    parent: PathNode | None
    row: Layer | None = None
    position: int = 0
    children: list[PathNode] = field(default_factory=list)
    loose: bool = False
    size: int = 0
    weighted: bool = False
    fingerprints: tuple[int, ...] = ()

    def below(self) -> Iterator[PathNode]:
        """The node and all nodes inside it, parents first."""
        yield self
        for child in self.children:
            yield from child.below()


class IdTable:
    """Gives equal keys equal numbers."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def __call__(self, key: Hashable) -> int:
        return self._known.setdefault(key, len(self._known))


def tokens(path: str) -> list[str]:
    """`h.0.attn` as `h`, `.0`, `.attn`: joined they are the path again."""
    parts = _SEPARATOR.split(path)
    return parts if len(parts) <= _DEEPEST else [*parts[: _DEEPEST - 1], "".join(parts[_DEEPEST - 1 :])]


def bare_name(token: str) -> str:
    """A token without the separator before it."""
    return token[1:] if token[:1] in (".", "/") else token


def build_tree(summary: Summary, ids: IdTable) -> PathNode:
    """The tree of a summary; its root has a row when the model itself holds weights."""
    root = PathNode("", "", None)
    nodes: dict[str, PathNode] = {}
    for position, layer in enumerate(summary.layers):
        if layer.path == ROOT:
            root.path, root.row, root.position = ROOT, layer, position
            continue
        parent, path = root, ""
        for token in tokens(layer.path):
            path += token
            node = nodes.get(path)
            if node is None:
                node = nodes[path] = PathNode(path, bare_name(token), parent, position=position)
                parent.children.append(node)
            parent = node
        parent.row = layer
        parent.position = position
    _set_fingerprints(root, ids, summary.framework == "keras")
    return root


def _set_fingerprints(node: PathNode, ids: IdTable, keras: bool) -> None:
    for child in node.children:
        _set_fingerprints(child, ids, keras)
    row = node.row
    node.loose = _is_loose(node.token, row, keras)
    node.size = (row is not None) + sum(child.size for child in node.children)
    node.weighted = bool(row is not None and row.weights) or any(child.weighted for child in node.children)
    inside: list[tuple[Hashable, ...]] = [
        tuple((_fingerprinted_name(child), child.fingerprints[level]) for child in node.children) for level in Level
    ]
    if row is None:
        own_keys: tuple[Hashable, ...] = (None,) * len(Level)
    else:
        own_keys = (
            (row.type, row.outputs, tuple(map(_weight_facts, row.weights)), row.calls, row.container),
            (row.type, tuple((weight.name, weight.shape, weight.role) for weight in row.weights)),
            (row.type, tuple((weight.name, _without_input_dimension(weight.shape, keras)) for weight in row.weights)),
            (row.type, tuple(weight.name for weight in row.weights)),
            row.type,
        )
    inside[Level.TYPE] = (bool(node.children),)
    node.fingerprints = tuple(ids((level, own_keys[level], inside[level])) for level in Level)


def _without_input_dimension(shape: tuple[int, ...], keras: bool) -> tuple[int, ...]:
    """A shape without its input dimension: Keras `(k..., in, out)`, torch `(out, in, k...)`."""
    place = len(shape) - 2 if keras else 1
    return shape[:place] + shape[place + 1 :] if len(shape) > 1 else shape


def _weight_facts(w: Weight) -> Hashable:
    return (w.name, w.shape, w.dtype, w.trainable, w.role, w.tied_to is None, w.packed_bytes)


def _fingerprinted_name(node: PathNode) -> str:
    return "#" if node.loose else node.token


def _is_loose(token: str, row: Layer | None, keras: bool) -> bool:
    if split_number(token):
        return True
    if row is None:
        return False
    return token == row.type or (keras and token == _keras_name(row.type))


def _keras_name(kind: str) -> str:
    """The name that Keras gives a layer of this type: `ReLU` is `re_lu`."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
