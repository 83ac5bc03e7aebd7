"""The content of a LiteRT file as an exported model: names, weights, operators, and the graphs that they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.backends.exported.graph import Constant, ExportedModel, Operator
from pytest_modelbudget.backends.exported.litert import batch, loops, schema
from pytest_modelbudget.backends.exported.litert.arena import arena_bytes
from pytest_modelbudget.backends.exported.litert.content import CURE, Content, Graph, Step, Tensor, packed_bytes
from pytest_modelbudget.backends.exported.litert.kernels import OWN_MEMORY, UnknownMemory
from pytest_modelbudget.backends.exported.litert.modules import modules
from pytest_modelbudget.backends.exported.litert.weights import matrices, parameters
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary import ITEM_BYTES, Input, TensorSpec

FORMAT = "litert"

_DEEPEST = 100
_MOST_RUNS = 2_000
"""Graphs that are run by operators, one that is run in two places counted twice."""

_LOOPS = frozenset({"WHILE", "STABLEHLO_WHILE"})
_CHOICES = frozenset({"IF", "STABLEHLO_CASE"})
_DELEGATES = frozenset({"DELEGATE", "DISPATCH_OP", "edgetpu-custom-op", "ethos-u"})
"""Operators that hold a compiled part of a model: what runs in them is not in the file, or not in its words."""


def exported_model(content: Content) -> ExportedModel:
    """A file's first graph as a model, with all that it runs; other graphs give their weights and are named in a note.

    Raises:
        DamagedFile: graphs run each other without an end, or too many of them.
    """
    builder = _Builder(content)
    main = content.graphs[0]
    operators = builder.operators(0, batch.of_inputs(main), 0)
    names = builder.names_of_main
    builder.add_unused_graphs()
    planned, kernels, arena_notes = _arena(main)
    return ExportedModel(
        FORMAT,
        content.file_bytes,
        builder.constants,
        dialect="litert",
        operators=operators,
        values=builder.values,
        inputs=builder.ports(main.inputs, names),
        outputs=builder.ports(main.outputs, names),
        arena_bytes=planned,
        arena_kernels=kernels,
        delegated=builder.delegated,
        notes=(*builder.notes(), *arena_notes),
    )


def _arena(graph: Graph) -> tuple[int | None, str, tuple[str, ...]]:
    """The arena of the reference kernels, their name, and what to know of it; see `arena`."""
    notes = []
    is_open = any(tensor.open_axes for tensor in graph.tensors)
    try:
        if is_open:
            _check_open_sizes(graph)
            notes.append("arena_bytes are those of one batch: the file leaves its size open")
        planned = arena_bytes(graph, "reference")
        built_in = arena_bytes(graph, "built-in")
    except UnknownMemory as error:
        cure = ": convert the model for a fixed batch to have all of it planned" if is_open else ""
        return None, "", (f"arena_bytes are not known: {error}{cure}",)
    if any(step.type in OWN_MEMORY for step in graph.steps):
        notes.append(f"{' and '.join(sorted(OWN_MEMORY))} takes memory of its own beside the arena")
    if built_in != planned:
        notes.append(f"the arena is {built_in:,} bytes with the built-in kernels, which unfold inputs of convolutions")
    return planned, "reference", tuple(notes)


def _check_open_sizes(graph: Graph) -> None:
    """A plan takes what the file writes for an open size, which is right where that is one batch."""
    known = batch.multiples(graph, batch.of_inputs(graph))
    for index, tensor in enumerate(graph.tensors):
        if tensor.open_axes and known.get(index) != 1:
            raise UnknownMemory(f"the size of {tensor.name or index!r} is open, and not known to be one batch")


@dataclass(slots=True)
class _Builder:
    """Operators, constants and values with names of their own, of all graphs that the first one runs."""

    content: Content
    constants: dict[str, Constant] = field(default_factory=dict)
    values: dict[str, TensorSpec] = field(default_factory=dict)
    names_of_main: list[str] = field(default_factory=list)
    delegated: int = 0
    _taken: dict[str, int] = field(default_factory=dict)
    _run: set[int] = field(default_factory=set)
    _runs: int = 0

    def operators(self, number: int, given: Mapping[int, int], depth: int) -> tuple[Operator, ...]:
        """The operators of a graph; `given` are the batches of its inputs, see `batch.multiples`."""
        graph = self.content.graphs[number]
        self._runs += 1
        if depth > _DEEPEST or self._runs > _MOST_RUNS:
            raise DamagedFile(
                f"is damaged: its graphs run each other more than {_DEEPEST} deep, or {_MOST_RUNS:,} times: {CURE}"
            )
        self._run.add(number)
        known = batch.multiples(graph, given)
        names = self._tensors(graph, known)
        if depth == 0:
            self.names_of_main = names
        around = modules(graph)
        return tuple(
            self._operator(graph, step, names, known, depth, within)
            for step, within in zip(graph.steps, around, strict=True)
        )

    def add_unused_graphs(self) -> None:
        """Give the weights of graphs that the first one does not run, where they are stored for these alone."""
        stored = {constant.storage for constant in self.constants.values()}
        for number, graph in enumerate(self.content.graphs):
            if number in self._run:
                continue
            weights = parameters(graph, ())
            for index, tensor in enumerate(graph.tensors):
                if tensor.stored is not None and tensor.stored not in stored:
                    stored.add(tensor.stored)
                    self.constants[self._name(tensor)] = _constant(tensor, is_parameter=index in weights)

    def ports(self, indices: tuple[int, ...], names: list[str]) -> tuple[Input, ...]:
        """Inputs or outputs of the model, without those of which the file says no shape."""
        specs = {
            name: self.values[name] if name in self.values else _stored_spec(self.constants.get(name))
            for name in (names[index] for index in indices if index >= 0)
        }
        return tuple(Input(name, spec) for name, spec in specs.items() if spec is not None)

    def notes(self) -> Iterator[str]:
        """What is in the file and not counted."""
        others = [name or f"number {graph}" for name, graph in self.content.signatures if graph not in self._run]
        if others:
            yield f"the signatures {', '.join(others)} are not counted, but for their weights: the first graph is"

    def _tensors(self, graph: Graph, known: Mapping[int, int]) -> list[str]:
        """Note all tensors of a graph, and give their names."""
        weights = parameters(graph, self._changed(graph))
        names = [self._name(tensor) for tensor in graph.tensors]
        for index, (name, tensor) in enumerate(zip(names, graph.tensors, strict=True)):
            if tensor.stored is not None:
                self.constants[name] = _constant(tensor, is_parameter=index in weights)
            elif tensor.shaped:
                self.values[name] = batch.spec(tensor, known.get(index))
        return names

    def _changed(self, graph: Graph) -> set[int]:
        """The tensors with which the loops of a graph begin."""
        changed: set[int] = set()
        for step in graph.steps:
            if step.type in _LOOPS and (numbers := self._bodies(step)):
                changed |= loops.changed_inputs(step, self.content.graphs[numbers[-1]])
        return changed

    def _name(self, tensor: Tensor) -> str:
        """A name that no other tensor has."""
        name = base = tensor.name or "tensor"
        while name in self._taken:
            self._taken[base] += 1
            name = f"{base}#{self._taken[base]}"
        self._taken[name] = 1
        return name

    def _operator(
        self, graph: Graph, step: Step, names: list[str], known: Mapping[int, int], depth: int, within: Any
    ) -> Operator:
        inputs, outputs = (
            tuple(names[index] if index >= 0 else "" for index in indices) for indices in (step.inputs, step.outputs)
        )
        self.delegated += step.type in _DELEGATES
        numbers = self._bodies(step)
        bodies = tuple(self.operators(number, self._given(number, step, known), depth + 1) for number in numbers)
        return Operator(
            _type(step),
            inputs,
            outputs,
            {**step.attributes, **_extra_attributes(graph, step)},
            modules=within,
            bodies=bodies,
            trips=self._trips(graph, step, numbers),
            chooses=bool(bodies) and step.type in _CHOICES,
        )

    def _bodies(self, step: Step) -> tuple[int, ...]:
        """The numbers of the graphs that an operator runs."""
        numbers: tuple[int, ...] = step.attributes.get("bodies", ())
        for number in numbers:
            if not 0 < number < len(self.content.graphs):
                raise DamagedFile(f"is damaged: {step.type} runs graph {number}, which is none of its: {CURE}")
        return numbers

    def _given(self, number: int, step: Step, known: Mapping[int, int]) -> dict[int, int]:
        """The batches of the inputs of a graph that an operator runs; of a choice the first input is what decides."""
        inputs = step.inputs[1:] if step.type in _CHOICES else step.inputs
        pairs = zip(self.content.graphs[number].inputs, inputs, strict=False)
        return {inside: known[outside] for inside, outside in pairs if outside in known}

    def _trips(self, graph: Graph, step: Step, numbers: tuple[int, ...]) -> int | None:
        if step.type not in _LOOPS or len(numbers) != 2:
            return 1
        condition, body = (self.content.graphs[number] for number in numbers)
        return loops.trips(graph, step, condition, body)


def _stored_spec(constant: Constant | None) -> TensorSpec | None:
    """A constant that is an output."""
    return None if constant is None else TensorSpec(constant.shape, constant.dtype)


def _type(step: Step) -> str:
    """The name of an operator; a custom one never has that of a built-in one, whose rules are not its own."""
    if step.custom and step.type in schema.OPERATORS:
        return f"CUSTOM:{step.type}"
    return f"{step.type}:{step.attributes['target']}" if step.attributes.get("target") else step.type


def _extra_attributes(graph: Graph, step: Step) -> dict[str, Any]:
    """What FLOP rules ask of an operator and its options do not say."""
    if (shapes := matrices(graph, step)) is not None:
        return {"matrices": shapes}
    if step.type == "RFFT2D" and len(step.inputs) > 1:
        return {"fft_length": graph.tensors[step.inputs[1]].values}
    return {}


def _constant(tensor: Tensor, *, is_parameter: bool) -> Constant:
    assert tensor.stored is not None
    size = tensor.stored.size
    plain = tensor.dtype in ITEM_BYTES and packed_bytes(tensor) == size
    return Constant(
        tensor.shape,
        tensor.dtype,
        (tensor.stored.file, tensor.stored.begin),
        role="param" if is_parameter else "buffer",
        stored_bytes=None if plain else size,
    )
