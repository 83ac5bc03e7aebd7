"""ONNX files: read without onnx, and without their weights, which are passed over in the mapped file.

`wire` walks protocol buffers, `tensors` and `model` make the parts of a model of them, `flat` one graph of all its
functions. Of that come shapes (`shapes`, the only part that uses onnx, in a process of its own), the `roles` of
tensors, the `modules` of the source and the `operators`.
"""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path

from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.backends.exported.onnx.constants import in_order_of_use, without_copies
from pytest_modelbudget.backends.exported.onnx.dims import with_symbols
from pytest_modelbudget.backends.exported.onnx.flat import Flattener
from pytest_modelbudget.backends.exported.onnx.model import Decoder, Graph, Model
from pytest_modelbudget.backends.exported.onnx.modules import ModuleFinder
from pytest_modelbudget.backends.exported.onnx.notes import note_on_unseen, notes_on
from pytest_modelbudget.backends.exported.onnx.operators import OperatorMaker, tensors_of
from pytest_modelbudget.backends.exported.onnx.packed import unpacked
from pytest_modelbudget.backends.exported.onnx.roles import roles_of, weights_among_inputs
from pytest_modelbudget.backends.exported.onnx.shapes import known_shapes, with_open_batch
from pytest_modelbudget.backends.exported.onnx.tensors import DataFolder
from pytest_modelbudget.backends.exported.onnx.wire import Wire
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary import Input

__all__ = ["read"]


def read(path: Path) -> ExportedModel:
    """The model of an .onnx file, with its data files.

    Raises:
        DamagedFile: it is none, or not as it says.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise DamagedFile("is empty: fetch it again, or export the model again")
        folder = DataFolder(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = Decoder(folder).model(Wire(data), (0, size))
    folder.check_overlaps()
    return _exported(model, size + sum(folder.sizes.values()))


def _exported(model: Model, file_bytes: int) -> ExportedModel:
    flattener = Flattener(model.functions)
    graph = with_open_batch(with_symbols(_without_stored_inputs(flattener.flat(model.graph))))
    tensors = {tensor.name: tensor for tensor in tensors_of(graph)}
    graph = in_order_of_use(without_copies(graph, tensors), tensors)
    role = roles_of(model, graph, tensors)
    unseen = weights_among_inputs(graph, role)
    known = known_shapes(graph, tensors, model.opsets, model.ir_version)
    finder = ModuleFinder.of(graph, frozenset(tensors))
    maker = OperatorMaker(known.values, tensors, finder, flattener.modules, model.opsets.get("", 0))
    constants = {name: tensor.constant(role[name]) for name, tensor in tensors.items()}
    return ExportedModel(
        format="onnx",
        file_bytes=file_bytes,
        constants=unpacked(constants, graph),
        dialect="onnx",
        operators=maker.operators(graph),
        values=known.values,
        inputs=tuple(Input(value.name, known.values[value.name]) for value in graph.inputs if value.spec),
        outputs=tuple(
            Input(value.name, known.values[value.name]) for value in graph.outputs if value.name in known.values
        ),
        unseen=("the caller",) if unseen else (),
        notes=(*known.notes, *note_on_unseen(unseen), *notes_on(model, graph, frozenset(tensors), known.values)),
    )


def _without_stored_inputs(graph: Graph) -> Graph:
    """Files of the first versions list their weights among the inputs too."""
    stored = {tensor.name for tensor in graph.tensors}
    return replace(graph, inputs=tuple(value for value in graph.inputs if value.name not in stored))
