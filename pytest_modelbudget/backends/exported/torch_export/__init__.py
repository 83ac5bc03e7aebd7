"""Exported programs (`.pt2`, of `torch.export.save`) by the JSON in their archive; torch is not imported, nothing runs.

`torch.export.load` runs code of a file in several ways (pickles of sample inputs and weights, expressions of sizes), so
it is never called. `weights` are the tensors, `nodes` the operators, `dimensions` the sizes. What is compiled
(AOTInductor) is refused by name.
Schema: `torch/_export/serde/schema.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from pytest_modelbudget.backends.exported import archives, json_parts
from pytest_modelbudget.backends.exported.archives import Archive
from pytest_modelbudget.backends.exported.graph import Constant, ExportedModel
from pytest_modelbudget.backends.exported.torch_export.dimensions import symbols
from pytest_modelbudget.backends.exported.torch_export.nodes import Graph, Program, argument
from pytest_modelbudget.backends.exported.torch_export.weights import Role, constants
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary import Dim, Input

FORMAT, DIALECT = "torch.export", "torch_export"

_MODELS, _MODEL_BYTES = "models/", 64 << 20
_OLD_MODEL = "serialized_exported_program.json"
"""Where torch 2.7 and older have the program."""

_SCHEMA = 8
_AGAIN = "export the model again"
_BATCH = "B"
_UNBOUNDED = 1 << 60
"""What torch writes for a size without an end."""

_TENSORS = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def read(path: Path) -> ExportedModel:
    """The program in a `.pt2` file.

    Raises:
        DamagedFile: it is damaged, compiled, or of a version that is not read.
    """
    with archives.opened(path) as archive:
        name, part = _model_part(archive)
        return _model(archive, name, json_parts.parsed(archive.read(part, _MODEL_BYTES), "model"))


def _model_part(archive: Archive) -> tuple[str, str]:
    """The name of the one model in the archive, and of the member that has it."""
    names = [name for name in archive.members if name.startswith(_MODELS)]
    if len(names) == 1:
        return names[0].removeprefix(_MODELS).removesuffix(".json"), names[0]
    if any(name.startswith("data/aotinductor/") or name.endswith(".so") for name in archive.members):
        raise DamagedFile("is compiled by AOTInductor, and compiled code is not read: torch.export.save the model")
    if names:
        raise DamagedFile(f"holds {len(names)} models, of which one alone is read: save each as a file of its own")
    if _OLD_MODEL in archive.members:
        return "", _OLD_MODEL
    raise DamagedFile("is a zip archive without an exported program: write it by torch.export.save")


def _model(archive: Archive, name: str, program: Mapping[str, Any]) -> ExportedModel:
    version = json_parts.field(json_parts.field(program, "schema_version", dict), "major", int)
    if version != _SCHEMA:
        raise DamagedFile(f"has version {version} of its schema, and {_SCHEMA} is read: {_AGAIN} with another torch")
    module = json_parts.field(program, "graph_module", dict)
    content = json_parts.field(module, "graph", dict)
    signature = json_parts.field(module, "signature", dict)
    specs = [_spec(entry) for entry in json_parts.field(signature, "input_specs", list)]
    roles = dict(_roles(specs))
    tensors, notes = constants(archive, name, roles)
    user_inputs = [name for kind, entry in specs if kind == "user_input" for name in argument(entry["arg"]).tensors]
    names = _symbol_names(content, user_inputs)
    graph = Graph(Program(names, taken=Counter(tensors.keys())), content, dict(_weight_names(specs)))
    inputs = tuple(_port(graph, user_input) for user_input in user_inputs)
    for kind, entry in specs:
        if kind in ("custom_obj", "token"):
            graph.names[json_parts.field(entry["arg"], "name", str)] = ""
    operators = graph.operators()
    return ExportedModel(
        format=FORMAT,
        file_bytes=archive.file_bytes,
        constants=tensors,
        dialect=DIALECT,
        operators=operators,
        values=graph.program.values,
        inputs=inputs,
        outputs=tuple(_outputs(graph, signature)),
        notes=(*notes, *_constant_notes(tensors, specs), *_range_notes(program, graph, user_inputs)),
    )


def _spec(entry: object) -> tuple[str, dict[str, Any]]:
    """An input of the signature: what it is (`parameter`), and what is said of it."""
    arg = argument(entry, "input_specs")
    spec = json_parts.of_kind(arg.value, dict, arg.kind)
    if arg.kind != "constant_input":
        json_parts.field(spec, "arg", dict)
    return arg.kind, spec


def _roles(specs: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Role]]:
    for kind, entry in specs:
        if kind in _TENSORS:
            yield json_parts.field(entry, _TENSORS[kind], str), "param" if kind == "parameter" else "buffer"


def _weight_names(specs: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
    """The names of weights in the model by those that they have in the graph."""
    for kind, entry in specs:
        if kind in _TENSORS:
            yield json_parts.field(entry["arg"], "name", str), json_parts.field(entry, _TENSORS[kind], str)


def _symbol_names(content: Mapping[str, Any], inputs: list[str]) -> dict[str, Dim]:
    """What each symbol of the inputs is called here: as in the file, or `B` where it alone is a first dimension.

    A symbol that no input has depends on values.
    """
    shapes = [_sizes(content, name) for name in inputs]
    names: dict[str, Dim] = {symbol: symbol for symbol in chain.from_iterable(map(symbols, chain(*shapes)))}
    first = {symbol for shape in shapes if shape for symbol in symbols(shape[0])}
    if len(first) == 1 and _BATCH not in names:
        names[first.pop()] = _BATCH
    return names


def _sizes(content: Mapping[str, Any], name: str) -> list[object]:
    meta = json_parts.field(json_parts.field(content, "tensor_values", dict), name, dict)
    return json_parts.field(meta, "sizes", list)


def _port(graph: Graph, name: str) -> Input:
    unique = graph.define(name)
    return Input(unique, graph.program.values[unique])


def _outputs(graph: Graph, signature: Mapping[str, Any]) -> Iterator[Input]:
    """The tensors that the program gives to its user."""
    for entry in json_parts.field(signature, "output_specs", list):
        arg = argument(entry, "output_specs")
        if arg.kind == "user_output":
            for name in filter(None, argument(json_parts.field(arg.value, "arg", dict)).tensors):
                if (spec := graph.spec(name)) is not None:
                    yield Input(graph.known(name), spec)


def _constant_notes(tensors: Mapping[str, Constant], specs: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """What the program stores that is no parameter or buffer of the model."""
    lifted = [entry[_TENSORS[kind]] for kind, entry in specs if kind == "tensor_constant"]
    if lifted:
        elements = sum(prod(tensors[name].shape) for name in lifted)
        shown = ", ".join(name[:100] for name in lifted[:3]) + (", ..." if len(lifted) > 3 else "")
        yield f"buffers have {elements:,} elements of constants that the code of the model makes: {shown}"


def _range_notes(program: Mapping[str, Any], graph: Graph, inputs: Sequence[str]) -> Iterator[str]:
    """For which sizes of its inputs the program was exported, where that is not all of them."""
    ranges = json_parts.field(program, "range_constraints", dict)
    for name in inputs:
        for axis, size in enumerate(_sizes(graph.content, name)):
            limits = ranges.get(symbol) if len(names := symbols(size)) == 1 and (symbol := names[0]) in ranges else None
            least, most = (limits.get(key) if isinstance(limits, dict) else None for key in ("min_val", "max_val"))
            if _is_above(most, 0) and not _is_above(most, _UNBOUNDED):
                yield f"dimension {axis} of {name} was exported for {max(least or 0, 0):,} to {most:,}"
            elif _is_above(least, 2):
                yield f"dimension {axis} of {name} was exported for {least:,} and more"


def _is_above(value: object, bound: int) -> TypeGuard[int]:
    return isinstance(value, int) and value > bound
