"""Models of JAX behind the `Backend` protocol: flax.nnx, flax.linen and equinox.

`build` runs builders in a trace, `libraries` says which of the three is in use, `flax_nnx`, `flax_linen` and `equinox`
bring a model of theirs to an `AbstractModel`, `passes` trace its call, with marks of `recorder` on the calls of modules
that `flow` reads again, `rows` are made of passes, and `activations` are what `jax.vjp` holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax

from pytest_modelbudget.backends.dimensions import DimensionNaming, Sizes, fixed_symbol_notes, resolve
from pytest_modelbudget.backends.jax import libraries
from pytest_modelbudget.backends.jax.abstract_model import ROOT, UNKNOWN_TYPE, AbstractModel
from pytest_modelbudget.backends.jax.activations import JaxActivations, measure_activations
from pytest_modelbudget.backends.jax.arguments import CallArguments, call_arguments, ports
from pytest_modelbudget.backends.jax.build import (
    FRAMEWORK,
    abstract,
    global_state_restored,
    is_settled,
    traced,
)
from pytest_modelbudget.backends.jax.memory.planning import plan_run
from pytest_modelbudget.backends.jax.outline import outline
from pytest_modelbudget.backends.jax.passes import AbstractPass, run
from pytest_modelbudget.backends.jax.private import plain_tracebacks
from pytest_modelbudget.backends.jax.rows import rows
from pytest_modelbudget.backends.residuals import ResidualsUnknown
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import Recipe
from pytest_modelbudget.summary import Flops, Layer, Plan, Summary

__all__ = [
    "FRAMEWORK",
    "abstract",
    "global_state_restored",
    "is_class",
    "outline",
    "owns",
    "plan",
    "summarize",
    "traced",
]

is_class = libraries.is_class


def owns(model: object) -> bool:
    """Whether `model` is a model of flax or equinox, or what stayed of one that was built in a trace."""
    return is_settled(model) or libraries.of(model) is not None


def summarize(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    built_here: bool,
) -> Summary:
    """Count `model`: a row for each module, FLOPs of one call for inference, what `jax.vjp` of one for training keeps.

    Without inputs its modules and weights alone are known. A model of linen has none without inputs.

    Raises:
        ModelBudgetError: inputs do not fit, or are missing for a model of linen.
    """
    return _JaxSummaryBuilder(name, {BATCH: 1, **sizes}, inputs).summary(model)


def plan(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    recipes: tuple[Recipe, ...],
    built_here: bool,
    devices: tuple[str, ...] = (),
) -> tuple[Plan, ...]:
    """What is known of the memory of runs: weights, gradients, optimizer and what is kept, and bounds of the peak.

    The peak itself is known where a recipe asks for the compiler (`compile: xla`), which is that of the CPU.

    Raises:
        ModelBudgetError: there are no inputs, or a recipe does not fit the model.
    """
    if inputs is None:
        raise ModelBudgetError(f"{name}: a run is planned of its inputs; {_WRITE_INPUTS}")
    builder = _JaxSummaryBuilder(name, {BATCH: 1, **sizes}, inputs)
    described, arguments = builder.described(model), call_arguments(inputs, builder.sizes)
    return tuple(plan_run(described, arguments, recipe, devices) for recipe in recipes)


@dataclass(slots=True)
class _JaxSummaryBuilder:
    name: str
    sizes: Sizes
    inputs: Inputs | None
    notes: list[str] = field(default_factory=list)

    def summary(self, model: Any) -> Summary:
        abstract_model = self.described(model)
        self.notes += abstract_model.notes
        if self.inputs is None:
            return self._uncalled(abstract_model)
        return self._called(abstract_model, self.inputs)

    def described(self, model: Any) -> AbstractModel:
        """What there is of `model` to be run.

        Raises:
            ModelBudgetError: inputs do not fit, or are missing for a model of linen.
        """
        if is_settled(model):
            return model  # type: ignore[no-any-return]
        library = libraries.known(str(libraries.of(model)))
        return library.described(model, self._run_abstractly)  # type: ignore[no-any-return]

    def _run_abstractly(self, function: Any) -> Any:
        """What `function` gives for the declared arguments.

        Raises:
            ModelBudgetError: there are none, or they do not fit.
        """
        if self.inputs is None:
            raise ModelBudgetError(
                f"{self.name}: a model of flax.linen has no weights before it is called; {_WRITE_INPUTS}"
            )
        arguments = call_arguments(self.inputs, self.sizes)

        def call(*tensors: Any) -> Any:
            args, kwargs = arguments.filled(tensors)
            return function(*args, **kwargs)

        try:
            with plain_tracebacks():
                return jax.eval_shape(call, *arguments.specs.values())
        except Exception as error:
            raise self._misfit(error) from error

    def _misfit(self, error: Exception, *, per_example: bool = False) -> ModelBudgetError:
        assert self.inputs is not None
        listed = ", ".join(map(str, ports(self.inputs)))
        cure = _NO_BATCH if per_example and BATCH in self.inputs.symbols else ""
        return ModelBudgetError(f"{self.name}: the model cannot be called with {listed}: {_error_text(error)}{cure}")

    def _uncalled(self, model: AbstractModel) -> Summary:
        layers = tuple(
            Layer(part.path, part.type or UNKNOWN_TYPE, weights=part.weights, calls=None, container=part.container)
            for part in model.parts
            if part.weights or part.path != ROOT
        )
        return Summary(self.name, FRAMEWORK, layers, notes=(_UNCALLED_NOTE, *self.notes))

    def _called(self, model: AbstractModel, inputs: Inputs) -> Summary:
        arguments = call_arguments(inputs, self.sizes)
        try:
            base = run(model, arguments)
        except Exception as error:
            raise self._misfit(error, per_example=model.per_example) from error
        count, by_path = base.flops()
        saved = self._activations(model, arguments)

        def named(passes: Sequence[tuple[Sizes, AbstractPass]]) -> tuple[DimensionNaming, tuple[Layer, ...]]:
            naming = DimensionNaming([sizes for sizes, _ in passes])
            return naming, rows([trace for _, trace in passes], naming, by_path, saved)

        sizes = {symbol: self.sizes[symbol] for symbol in inputs.symbols}
        naming, layers, passes = resolve([(sizes, base)], partial(self._pass_if_it_runs, model, inputs), named)
        return Summary(
            model=self.name,
            framework=FRAMEWORK,
            layers=layers,
            inputs=ports(inputs),
            outputs=naming.specs([trace.outputs for _, trace in passes]),
            flops=Flops(count.flops, count.uncounted),
            activation_bytes=None if saved is None else saved.total,
            sizes=tuple(sizes.items()),
            notes=(*self.notes, *fixed_symbol_notes(passes)),
        )

    def _pass_if_it_runs(self, model: AbstractModel, inputs: Inputs, sizes: Sizes) -> AbstractPass | None:
        try:
            return run(model, call_arguments(inputs, sizes))
        except Exception:  # this size does not suit the model
            return None

    def _activations(self, model: AbstractModel, arguments: CallArguments) -> JaxActivations | None:
        try:
            saved = measure_activations(model, arguments)
        except ResidualsUnknown as reason:
            self.notes.append(f"activation_bytes is not known: {reason}")
            return None
        self.notes.append("activation_bytes: as jax.vjp keeps them, before the compiler")
        return saved


_WRITE_INPUTS = 'write e.g. inputs: "float32[B, 28, 28, 3]"'
_UNCALLED_NOTE = (
    "without inputs the model was not called: shapes, connections, calls, FLOPs and activation_bytes are not known; "
    f"{_WRITE_INPUTS}"
)
_NO_BATCH = (
    f"; a model of equinox takes one example: leave {BATCH} out of its inputs, or register a module that calls it "
    "through jax.vmap"
)


def _error_text(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
