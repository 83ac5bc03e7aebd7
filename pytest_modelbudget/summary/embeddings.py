"""Which rows of a summary are look-up tables, and the params outside of them.

A look-up table is a layer of the types Embedding, EmbeddingBag (torch), Embedding, ReversibleEmbedding (Keras, on any
backend) or Embed (flax), or one whose type says Embedding, whose only param is one matrix `weight`, `embeddings` or
`embedding`, whose outputs have the width of its rows, and which is not known to be given floats (a subclass, as of
scaled or learned positions). Tables of positions count as tables, like those of tokens.

What a module indexes itself without such a layer cannot be told from a matrix that it multiplies with (a param of two
dimensions or more, with more than one row). So the number is not known as soon as a layer of an unfamiliar type holds a
matrix and is given whole numbers, or where it cannot be told what it is given in a model that has whole numbers as
inputs. A matrix of a module made of other layers is no table, unless that is given whole numbers and no floats, or is
the model itself.

Only what snapshots record is looked at, so that a model and its snapshot have the same number; but for modules made of
other layers, of which a snapshot does not say what they are given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from pytest_modelbudget.summary.formulas import LOOK_UP, is_familiar
from pytest_modelbudget.summary.model import Layer, Summary
from pytest_modelbudget.summary.tensors import TensorSpec

_ROOT = "(root)"
"""The path of the row for what the model holds itself."""

_OPERATORS_THAT_LOOK_UP = "Gather|GATHER|EMBEDDING_LOOKUP|embedding"
_OPERATORS_THAT_MULTIPLY = (
    "(QLinear|Fused|Nhwc)?Conv(Transpose|Integer)?|(Q|Fused)?Gemm|(Dynamic|Fused|QLinear|Q)?(Quantize)?MatMul\\w*"
    "|(DEPTHWISE_|TRANSPOSE_)?CONV(_[23]D)?|FULLY_CONNECTED|BATCH_MATMUL|conv[123]d|convolution|linear|(add|b)?mm|matmul"
)
"""Operators of exported files, which take whole numbers where the file is quantised."""

_HEADS = ("reverse_embeddings",)
"""Weights of a table that are no part of it: the head of a Keras ReversibleEmbedding that is not tied."""

_Specs = dict[str, tuple[TensorSpec, ...]]
"""What each row and each input gives to those it is connected to."""


def params_outside(summary: Summary) -> int | None:
    """Elements of all parameters but those that a look-up table holds, each shared one once; None when not known.

    A head that is tied to a table has no params of its own, whichever of the two comes first; one that is not tied
    counts, as do biases.
    """
    tables = _tables(summary)
    if any(is_table is None for is_table in tables.values()):
        return None
    held = {
        weight.tied_to or f"{layer.path}.{weight.name}"
        for layer in summary.layers
        if tables.get(layer.path)
        for weight in layer.weights
        if weight.name not in _HEADS
    }
    inside = (
        weight.elements
        for layer in summary.layers
        if held and layer.params
        for weight in layer.own
        if weight.role == "param" and f"{layer.path}.{weight.name}" in held
    )
    return summary.params - sum(inside)


def why_unknown(summary: Summary) -> str:
    """The first layer of which it cannot be told whether it is a look-up table; empty when there is none."""
    tables = _tables(summary)
    layer = next((layer for layer in summary.layers if tables.get(layer.path, False) is None), None)
    return "" if layer is None else f"whether {layer.path} ({layer.type}) is a look-up table cannot be told"


def _tables(summary: Summary) -> dict[str, bool | None]:
    """For each row that may be one, whether it is a look-up table; None where nothing tells."""
    tables: dict[str, bool | None] = {}
    unfamiliar: list[Layer] = []
    for layer in summary.layers:
        if layer.weights and (_by_type(layer.type) or _holds_matrix(layer)):
            tables[layer.path] = _by_type(layer.type)
            unfamiliar += [layer] if tables[layer.path] is None else []
    if unfamiliar:
        specs: _Specs = {name: (port.spec,) for port in summary.inputs for name in (port.name, f"input {port.name}")}
        specs |= {layer.path: tuple(spec for call in layer.outputs for spec in call) for layer in summary.layers}
        steered = not summary.inputs or _has_integers(port.spec for port in summary.inputs)
        tables |= {layer.path: _is_table(layer, _given(layer, summary, specs), steered) for layer in unfamiliar}
    return tables


def _holds_matrix(layer: Layer) -> bool:
    """Whether a param of it has rows that could be looked up."""
    return any(len(weight.shape) > 1 and weight.shape[0] > 1 and weight.role == "param" for weight in layer.weights)


@lru_cache(1024)
def _by_type(kind: str) -> bool | None:
    """Whether layers, or operators, of a type are look-up tables; None for an unfamiliar type."""
    if re.fullmatch(f"{_OPERATORS_THAT_LOOK_UP}|{_OPERATORS_THAT_MULTIPLY}", kind):
        return re.fullmatch(_OPERATORS_THAT_LOOK_UP, kind) is not None
    return bool(re.fullmatch(LOOK_UP, kind)) if is_familiar(kind) else None


def _is_table(layer: Layer, given: tuple[TensorSpec, ...], integers_in_model: bool) -> bool | None:
    """The same of a row of an unfamiliar type, from the tensors it is given; None where nothing tells."""
    if given and not _has_integers(given):
        return False
    if "Embedding" in layer.type and _looks_up(layer):
        return True
    apart = layer.calls == 0 or (layer.container and layer.calls is not None)
    if apart and not given and "embed" not in layer.type.lower():
        return False
    return None if given or integers_in_model else False


def _looks_up(layer: Layer) -> bool:
    """Whether its only param is a matrix named as a table's, and its outputs are rows of that."""
    table, *others = (weight for weight in layer.weights if weight.role == "param")
    if others or table.name not in ("weight", "embeddings", "embedding"):
        return False
    return all(spec.shape[-1:] == table.shape[-1:] for call in layer.outputs for spec in call)


def _given(layer: Layer, summary: Summary, specs: _Specs) -> tuple[TensorSpec, ...]:
    """The tensors that a row is given; none where not all of them are known."""
    if layer.path == _ROOT:
        return tuple(port.spec for port in summary.inputs)
    if layer.container:
        tensors = tuple(spec for call in layer.inputs for spec in call)
        return () if any("float" in spec.dtype for spec in tensors) else tensors
    sources = [specs.get(name, ()) for call in layer.connected_to for name in call]
    return tuple(spec for source in sources for spec in source) if all((*layer.connected_to, *sources)) else ()


def _has_integers(specs: Iterable[TensorSpec]) -> bool:
    return any(spec.dtype.startswith(("int", "uint")) for spec in specs)
