"""Shapes of the values of a flat graph: those that the file says, then those that onnx infers from its inputs.

Inference knows no products of names: the model is inferred at a few sizes of them, and each dimension is explained by
these, as everywhere (`backends/dimensions.py`). It runs without weights and in a process of its own, which has a limit
of memory and time, since it is native code that meets whatever a file says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from pytest_modelbudget.backends.calls import ShapeDtype
from pytest_modelbudget.backends.dimensions import DimensionNaming
from pytest_modelbudget.backends.exported.onnx import dims
from pytest_modelbudget.backends.exported.onnx.encode import Encoder
from pytest_modelbudget.backends.exported.onnx.model import Graph, Node, Value
from pytest_modelbudget.backends.exported.onnx.stand_ins import StandIns
from pytest_modelbudget.backends.exported.onnx.tensors import DTYPES, LARGEST_DIM, Tensor
from pytest_modelbudget.inputs import BATCH
from pytest_modelbudget.summary import TensorSpec

_SIZES = (
    (33, 101, 67, 45, 139, 87, 121, 73), (62, 134, 99, 78, 171, 58, 150, 110), (100, 163, 53, 117, 92, 146, 181, 69),
    (151, 77, 136, 187, 116, 43, 98, 161), (205, 52, 178, 94, 63, 122, 81, 148), (132, 191, 85, 60, 107, 170, 54, 119),
    (84, 118, 155, 131, 48, 105, 167, 56),
)  # fmt: skip
"""Of the symbols in each run: even and odd, and of all rests to small divisors, so that no rounding stays unseen."""

_MEMORY = 640 << 20
_SECONDS = 60
_LARGEST_GRAPH = 64 << 20
_MOST_NAMES = 200_000

NO_ONNX = "shapes that the file does not say are not known: pip install pytest-modelbudget[onnx] to have them inferred"
NOT_INFERRED = "shapes that the file does not say are not known: onnx.shape_inference does not get through it"


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of the values of a graph, and what is to be said of them."""

    values: Mapping[str, TensorSpec]
    notes: tuple[str, ...] = ()


def with_open_batch(graph: Graph) -> Graph:
    """The graph with a name for the first dimension of inputs that have none there: it is a batch."""
    used = dims.known_symbols(value.spec for value in graph.inputs if value.spec)
    if BATCH in used:
        return graph
    return replace(graph, inputs=tuple(map(_with_open_batch, graph.inputs)))


def _with_open_batch(value: Value) -> Value:
    if value.spec is None or value.spec.shape[:1] != (None,):
        return value
    return Value(value.name, replace(value.spec, shape=(BATCH, *value.spec.shape[1:])))


def known_shapes(graph: Graph, tensors: Mapping[str, Tensor], opsets: Mapping[str, int], ir_version: int) -> Shapes:
    """The shape of each value of a flat graph, of those in its bodies too, as far as they are known."""
    inputs = {value.name: value.spec for value in graph.inputs if value.spec is not None}
    symbols = dims.known_symbols(inputs.values())
    values = {**inputs, **{name: dims.in_known_symbols(spec, symbols) for name, spec in _stated(graph)}}
    if all(dims.is_known(values.get(name)) for name in _made(graph)):
        return Shapes(values)
    if find_spec("onnx") is None:
        return Shapes(values, (NO_ONNX,))
    inferred = _inferred(StandIns(tensors).graph(graph), values, sorted(symbols), opsets, ir_version)
    if inferred is None:
        return Shapes(values, (NOT_INFERRED,))
    for name, spec in inferred.items():
        if (known := dims.merged(values.get(name), spec)) is not None:
            values[name] = known
    return Shapes(values)


def _stated(graph: Graph) -> Iterator[tuple[str, TensorSpec]]:
    """What the file says of its values."""
    for value in (*graph.values, *graph.outputs):
        if value.spec is not None:
            yield value.name, value.spec
    for node in graph.nodes:
        for inner in node.graphs.values():
            yield from _stated(inner)
            yield from ((value.name, value.spec) for value in inner.inputs if value.spec is not None)


def _made(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        yield from filter(None, node.outputs if node.type != "Constant" else ())
        for inner in node.graphs.values():
            yield from _made(inner)


def _inferred(
    graph: Graph, values: Mapping[str, TensorSpec], symbols: Sequence[str], opsets: Mapping[str, int], ir_version: int
) -> dict[str, TensorSpec] | None:
    """What onnx infers at a few sizes of the symbols, in their names; None where it refuses the graph."""
    if len(symbols) > len(_SIZES[0]) or _names(graph) > _MOST_NAMES:
        return None
    sizes = [dict(zip(symbols, run, strict=False)) for run in _SIZES[: len(_SIZES) if symbols else 1]]
    encoder = Encoder(opsets, ir_version)
    models = [encoder.model(_at(graph, values, run)) for run in sizes]
    runs = _run(models)
    if runs is None or len(runs) != len(sizes):
        return None
    naming = DimensionNaming(sizes, unexplained_open=True)
    common = [name for name in runs[0] if all(name in run for run in runs)]
    named = {name: naming.specs([(run[name],) for run in runs])[0] for name in common if _alike(name, runs)}
    return {name: spec for name, spec in named.items() if _alike(name, runs)}


def _names(graph: Graph) -> int:
    """How many names a graph has, those in its bodies too."""
    own = len(graph.values) + len(graph.outputs) + sum(len(node.inputs) + len(node.outputs) for node in graph.nodes)
    return own + sum(_names(inner) for node in graph.nodes for inner in node.graphs.values())


def _alike(name: str, runs: Sequence[Mapping[str, ShapeDtype]]) -> bool:
    return len({(len(run[name][0]), run[name][1]) for run in runs}) == 1


def _at(graph: Graph, values: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> Graph:
    """The graph at these sizes, with what is known of its values."""
    return replace(
        graph,
        nodes=tuple(_node_at(node, values, sizes) for node in graph.nodes),
        inputs=_values_at(graph.inputs, values, sizes),
        outputs=_values_at(graph.outputs, values, sizes),
        values=_values_at(graph.values, values, sizes),
    )


def _node_at(node: Node, values: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> Node:
    if not (graphs := node.graphs):
        return node
    return replace(node, graphs={key: _at(graph, values, sizes) for key, graph in graphs.items()})


def _values_at(
    stated: Iterable[Value], values: Mapping[str, TensorSpec], sizes: Mapping[str, int]
) -> tuple[Value, ...]:
    specs = [(value.name, values.get(value.name)) for value in stated]
    return tuple(Value(name, None if spec is None else dims.bound(spec, sizes)) for name, spec in specs)


def _run(models: Sequence[bytes]) -> list[dict[str, ShapeDtype]] | None:
    """What the script infers of each model; None where it fails, or takes more than it may."""
    if sum(map(len, models)) > _LARGEST_GRAPH:
        return None
    script = Path(__file__).with_name("infer_shapes.py")
    # numpy, which onnx imports, would reserve memory for threads that nothing needs
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(script), json.dumps([path for path in sys.path if path]), str(_MEMORY)]
    data = b"".join(len(model).to_bytes(8, "little") + model for model in models)
    try:
        ended = subprocess.run(command, input=data, capture_output=True, env=environment, timeout=_SECONDS, check=True)
        answers = [json.loads(line) for line in ended.stdout.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return None if None in answers else [_specs(answer) for answer in answers]


def _specs(answer: Mapping[str, tuple[int, list[int | None]]]) -> dict[str, ShapeDtype]:
    """The shapes and dtypes of an answer; a size that cannot be is none."""
    return {
        name: (tuple(dim if dim is not None and 0 <= dim < LARGEST_DIM else None for dim in shape), DTYPES[code][0])
        for name, (code, shape) in answer.items()
        if code in DTYPES
    }
