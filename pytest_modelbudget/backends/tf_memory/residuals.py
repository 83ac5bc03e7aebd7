"""What TensorFlow keeps of one call for its gradient: read from the graph of both, which is traced and never run.

Kept is what the forward pass makes and operators of the gradient read, each buffer whole and once: what only hands on
the buffer of an input is that input. Values that are known before the graph runs are constants, and are not counted,
and nothing is held for an operator that only asks for sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph
from pytest_modelbudget.backends.residuals import (
    Differentiable,
    FindResiduals,
    Parameter,
    Residuals,
    ResidualsUnknown,
    StorageRef,
    Tensor,
)
from pytest_modelbudget.backends.tf_memory import kernels
from pytest_modelbudget.backends.tf_memory.nodes import Node, bytes_of, nodes_of
from pytest_modelbudget.backends.tf_memory.scopes import PhaseMarks

_SIZES_ALONE = kernels.FREE | {"ZerosLike", "OnesLike"}
"""What asks for the sizes of an input alone."""


@contextmanager
def residuals_finder() -> Iterator[FindResiduals]:
    """Give a function that says what a call keeps."""
    yield _find_residuals


def _find_residuals(call: Differentiable, parameters: Sequence[Parameter], arguments: Sequence[Tensor]) -> Residuals:
    trace = _Trace(call, parameters, arguments)
    buffers = _KeptBuffers(trace)
    places = {name: place for place, name in enumerate(buffers.input_names)}
    count = len(parameters)
    refs: dict[str, StorageRef] = {}
    for name, place in places.items():
        refs[name] = ("parameter", place) if place < count else ("given", place - count)
    for place, tensor in enumerate(trace.results):
        refs.setdefault(buffers.buffer(tensor.name), ("made", place))
    storages = [(refs.setdefault(name, ("inner", len(refs))), size) for name, size in buffers.sizes.items()]
    return Residuals(
        tuple((ref, size) for ref, size in storages if ref[0] != "parameter"),
        tuple(trace.plain(tensor) for tensor in trace.results),
        tuple(refs[buffers.buffer(tensor.name)] for tensor in trace.results),
        tuple(place - count for place in trace.reached if place >= count),
    )


@dataclass(slots=True)
class _Trace:
    """The graph of a call and of its gradient, for `trained` inputs; `reached` are those that it comes to."""

    call: Differentiable
    parameters: Sequence[Parameter]
    arguments: Sequence[Tensor]
    results: list[Any] = field(default_factory=list)
    gradients: list[Any] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)
    phases: PhaseMarks = field(default_factory=PhaseMarks)
    graph: Any = None

    def __post_init__(self) -> None:
        tf = sys.modules["tensorflow"]  # what Keras runs on here
        items: list[Parameter | Tensor] = [*self.parameters, *self.arguments]
        specs = [tf.TensorSpec(item.shape, item.dtype) for item in items]
        trace = import_module("tensorflow.python.framework.func_graph").func_graph_from_py_func
        self.graph = trace("call", self._run, tuple(specs), {})

    def plain(self, tensor: Any) -> Tensor:
        """A result as plain data; a gradient flows through all floats where one comes to anything."""
        if (size := bytes_of(tensor)) is None or tensor.dtype.name == "variant":
            raise ResidualsUnknown("a result has no size before values are known")
        trained = bool(self.gradients) and tensor.dtype.is_floating
        return Tensor(tuple(tensor.shape), tensor.dtype.name, trained, 0, size)

    def _run(self, *tensors: Any) -> Any:
        tf = sys.modules["tensorflow"]
        items: list[Parameter | Tensor] = [*self.parameters, *self.arguments]
        trained = [place for place, item in enumerate(items) if item.trained and tensors[place].dtype.is_floating]
        count = len(self.parameters)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for place in trained:
                tape.watch(tensors[place])
            self.results = list(self.call(tensors[:count], tensors[count:]))
            self.phases.mark("forward")
        floats = [tensor for tensor in self.results if tensor.dtype.is_floating]
        if not floats or not trained:
            return self.results
        output_gradients = [tf.compat.v1.placeholder(tensor.dtype, tensor.shape) for tensor in floats]
        gradients = tape.gradient(floats, [tensors[place] for place in trained], output_gradients=output_gradients)
        self.reached = [place for place, gradient in zip(trained, gradients, strict=True) if gradient is not None]
        self.gradients = [gradient for gradient in gradients if gradient is not None]
        self.phases.mark("backward")
        return [*self.results, *self.gradients]


class _KeptBuffers:
    """The buffers that the forward pass made or was given and the gradient reads, with their sizes."""

    def __init__(self, trace: _Trace) -> None:
        graph = trace.graph
        self.input_names = [tensor.name for tensor in graph.inputs]
        self.sizes: dict[str, int] = {}
        self._buffers: dict[str, str] = {}
        """By the name of a tensor, that of the tensor whose buffer it has."""
        self._makers: dict[str, tuple[Node, int]] = {}
        self._constants: set[str] = set()
        phase_of = trace.phases.of(graph)
        for node in nodes_of(FunctionGraph(graph, graph.inputs, trace.gradients)).nodes:
            if phase_of(node.name) == "forward":
                self._add_maker(node)
            else:
                self._add_reads(node)

    def buffer(self, name: str) -> str:
        """The tensor whose buffer the tensor `name` has."""
        return self._buffers.get(name, name)

    def _add_maker(self, node: Node) -> None:
        is_constant = node.kind == "Const" or (bool(node.inputs) and self._constants.issuperset(node.inputs))
        random = node.op.op_def is not None and node.op.op_def.is_stateful
        for place, name in enumerate(node.outputs):
            self._makers[name] = (node, place)
            if is_constant and not random:
                self._constants.add(name)
            if node.kind in kernels.VIEWS and place < len(node.inputs):
                self._buffers[name] = self.buffer(node.inputs[place])

    def _add_reads(self, node: Node) -> None:
        for tensor, name in zip(node.op.inputs, node.inputs, strict=True):
            source = self.buffer(name)
            if source in self._constants or source not in self._makers:
                continue
            if node.kind in _SIZES_ALONE and bytes_of(tensor) is not None:
                continue
            self.sizes[source] = self._size(source)

    def _size(self, name: str) -> int:
        node, place = self._makers[name]
        tensor = node.op.outputs[place]
        if tensor.dtype.name == "variant":
            raise ResidualsUnknown(f"what the rounds of the loop {node.name} keep is not counted")
        if (size := bytes_of(tensor)) is None:
            raise ResidualsUnknown(f"without values the size of {node.kind} is not known")
        return size
