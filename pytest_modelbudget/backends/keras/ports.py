"""What a model is called with: its own inputs, or the declared ones checked against them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from pytest_modelbudget.backends.dimensions import symbols
from pytest_modelbudget.backends.keras import private, walk
from pytest_modelbudget.backends.keras.labels import Labels
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.summary import Dim, Input, TensorSpec

MakeInput = Callable[[str, TensorSpec], Any]


@dataclass(slots=True)
class CallArguments:
    """The arguments of one call, from whatever `make` returns for each input."""

    ports: tuple[Input, ...]
    build: Callable[[MakeInput], tuple[tuple[Any, ...], dict[str, Any]]]
    own: bool = False
    """Whether the ports are just the inputs the model was built with."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names of the symbolic dimensions, in the order first met."""
        return symbols(self.ports)

    def symbolic(self, sizes: Mapping[str, int] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keras tensors with open symbolic dimensions, or with these sizes."""

        def make(name: str, spec: TensorSpec) -> Any:
            return keras.KerasTensor(tuple(_size(dim, sizes) for dim in spec.shape), spec.dtype, name=name)

        return self.build(make)

    def refuse_other_batch(self, recipe: Recipe) -> None:
        """Refuse a recipe's batch where no input has a symbolic one, save the batch that the inputs are made for.

        Raises:
            ModelBudgetError: with what the model's inputs are.
        """
        made_for = {port.spec.shape[:1] for port in self.ports}
        if recipe.batch is not None and BATCH not in self.symbols and made_for not in (set(), {(recipe.batch,)}):
            kind = "training" if isinstance(recipe, Training) else "inference"
            raise ModelBudgetError(
                f"{kind}.batch: the model is built for {_ports_text(self.ports)}, and for no batch of {recipe.batch}: "
                "leave the key out, or build the model without a fixed batch"
            )

    def open_dimension(self, sizes: Mapping[str, int]) -> str | None:
        """The first input dimension without a size, in words; None when all have one."""
        for port in self.ports:
            for axis, dim in enumerate(port.spec.shape):
                if dim is None or (isinstance(dim, str) and dim not in sizes):
                    return f"axis {axis} of input {port.name!r}"
        return None


def _size(dim: Dim, sizes: Mapping[str, int] | None) -> int | None:
    if isinstance(dim, str):
        return None if sizes is None else sizes[dim]
    return dim


def declared_arguments(model: Any, inputs: Inputs | None, name: str, kind: str) -> CallArguments:
    """The arguments of a model or layer (its `kind`) that does not know its inputs, as `call` takes them.

    Several tensors, or named ones, are handed over as one list or mapping to a `call` that takes one argument.

    Raises:
        ModelBudgetError: none are declared.
    """
    if inputs is None:
        raise ModelBudgetError(
            f"{name}: a {type(model).__name__} {kind} does not know its inputs: "
            f'give `inputs:`, e.g. "float32[B, 28, 28, 3]"'
        )

    def build(make: MakeInput) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = inputs.build(make)
        signature = inspect.signature(model.call)
        if _fits_signature(signature, args, kwargs):
            return args, kwargs
        if not args and _fits_signature(signature, (kwargs,), {}):
            return (kwargs,), {}
        if _fits_signature(signature, (list(args),), kwargs):
            return (list(args),), kwargs
        raise ModelBudgetError(
            f"{name}: the inputs {_ports_text(inputs.ports)} do not fit {type(model).__name__}.call{signature}"
        )

    return CallArguments(inputs.ports, build)


def _fits_signature(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def graph_arguments(model: Any, inputs: Inputs | None, name: str, labels: Labels) -> CallArguments:
    """The arguments of a model with a graph: its own inputs, or the declared ones where they fit, under `labels`.

    Raises:
        ModelBudgetError: a declared input has no place in the model, or its shape is another.
    """
    graph = private.function_of(model)
    makers = [((private.history(tensor) or (tensor, None))[0], walk.tensor_spec(tensor)) for tensor in graph.inputs]
    structure = private.input_structure(graph)
    return own_arguments(makers, inputs, name, labels, lambda tensors: keras.tree.pack_sequence_as(structure, tensors))


def own_arguments(
    makers: Sequence[tuple[Any, TensorSpec]],
    inputs: Inputs | None,
    name: str,
    labels: Labels,
    pack: Callable[[list[Any]], Any],
) -> CallArguments:
    """The arguments of a model that knows its own inputs, by the layers that make them; see `graph_arguments`.

    `pack` makes of tensors the one argument that the model is called with.
    """
    own_inputs = [Input(str(maker.name), spec) for maker, spec in makers]
    shown_inputs = [Input(labels.get(id(maker), str(maker.name)), spec) for maker, spec in makers]
    ports = tuple(shown_inputs if inputs is None else match_inputs(own_inputs, shown_inputs, inputs, name))

    def build(make: MakeInput) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (pack([make(port.name, port.spec) for port in ports]),), {}

    return CallArguments(ports, build, own=list(ports) == shown_inputs)


def match_inputs(own_inputs: list[Input], shown: list[Input], inputs: Inputs, name: str) -> list[Input]:
    """The declared inputs in the model's order, under their `shown` names; they may be declared under their own."""
    declared_inputs = inputs.ports
    if len(declared_inputs) != len(own_inputs):
        raise ModelBudgetError(
            f"{name}: the model has the inputs {_ports_text(own_inputs)}, inputs: gives {_ports_text(declared_inputs)}"
        )
    by_name = {port.name.rpartition(".")[2]: port for port in declared_inputs}
    named_inputs = next((ports for ports in (own_inputs, shown) if set(by_name) == {port.name for port in ports}), None)
    if named_inputs is None and inputs.kwargs and not inputs.args:
        raise ModelBudgetError(
            f"{name}: the model has the inputs {_ports_text(own_inputs)}, inputs: names {_ports_text(declared_inputs)}"
        )
    in_order = list(declared_inputs) if named_inputs is None else [by_name[port.name] for port in named_inputs]
    for port, declared in zip(own_inputs, in_order, strict=True):
        if not _fits(port.spec.shape, declared.spec.shape):
            raise ModelBudgetError(
                f"{name}: input {port.name!r} of the model is {port.spec}, inputs: declares {declared.spec} for it"
            )
    return [Input(port.name, declared.spec) for port, declared in zip(shown, in_order, strict=True)]


def _fits(shape: tuple[Dim, ...], declared_shape: tuple[Dim, ...]) -> bool:
    return len(shape) == len(declared_shape) and all(
        dim is None or dim in (declared_dim, BATCH) for dim, declared_dim in zip(shape, declared_shape, strict=True)
    )


def _ports_text(ports: Any) -> str:
    return ", ".join(map(str, ports)) or "(none)"
