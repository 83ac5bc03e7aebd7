"""Names that do not depend on what else the session has built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private

Labels = Mapping[int, str]
"""The name of an operation or layer by its identity, where that is not its own name."""


def automatic_number(kind: str, name: str) -> int | None:
    """The number in a name that Keras gave an object of the class `kind`; None for a name of the user's.

    >>> [automatic_number(*named) for named in (("LSTMCell", "lstm_cell_3"), ("Dense", "dense"), ("Dense", "top"))]
    [3, 0, None]
    """
    match = _automatic_names(kind).fullmatch(name)
    return None if match is None else int(match[1] or 0)


@lru_cache(maxsize=1024)
def _automatic_names(kind: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(automatic_base(kind))}(?:_(\d+))?")


@lru_cache(maxsize=1024)
def automatic_base(kind: str) -> str:
    """What Keras calls the first object of a class.

    >>> automatic_base("MultiHeadAttention"), automatic_base("LSTM"), automatic_base("Conv2DTranspose")
    ('multi_head_attention', 'lstm', 'conv2d_transpose')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def sublayer_name(layer: Any, sublayer: Any, layers: Any) -> str:
    """What `sublayer` is called in `layer`; empty for the one layer that a recurrent layer or a wrapper is about.

    `layers` holds the classes: `keras.layers`, or those of `tf_keras`. A name loses Keras' number, which counts the
    whole session: equal blocks are to look equal.
    """
    if isinstance(layer, layers.Bidirectional):
        named = {id(layer.forward_layer): "forward", id(layer.backward_layer): "backward"}
        if (direction := named.get(id(sublayer))) is not None:
            return direction
    elif sublayer is _inner(layer, layers):
        return ""
    kind = type(sublayer).__name__
    return str(sublayer.name) if automatic_number(kind, sublayer.name) is None else automatic_base(kind)


def _inner(layer: Any, layers: Any) -> Any:
    if isinstance(layer, layers.RNN):
        return layer.cell
    return layer.layer if isinstance(layer, layers.Wrapper) else None


def live_labels(*models: Any) -> Labels:
    """The automatic names in models of the user's, numbered from the first: as if nothing had been built before it.

    Keras numbers all layers of a session, so without this a snapshot would depend on the tests that ran before. A
    name that only looks like an automatic one (`dense_1`) is renumbered too: nothing tells the two apart.
    """
    return numbered(operations(*models))


def numbered(parts: Iterable[Any]) -> Labels:
    """The automatic names of these layers and operations, of whichever Keras, numbered from the first."""
    by_base: dict[str, dict[int, list[int]]] = {}
    for part in parts:
        kind = type(part).__name__
        if (number := automatic_number(kind, part.name)) is not None:
            by_base.setdefault(automatic_base(kind), {}).setdefault(number, []).append(id(part))
    return {
        identity: f"{name}_{rank}" if rank else name
        for name, by_number in by_base.items()
        for rank, number in enumerate(sorted(by_number))
        for identity in by_number[number]
    }


def operations(*models: Any) -> Iterator[Any]:
    """All layers and operations of some models, each once."""
    visited: set[int] = set()
    pending = list(models)
    while pending:
        operation = pending.pop()
        if id(operation) in visited:
            continue
        visited.add(id(operation))
        yield operation
        if isinstance(operation, keras.layers.Layer):
            pending.extend(private.sublayers(operation))
        if (graph := private.graph_of(operation)) is not None:
            pending.extend(graph.operations)
