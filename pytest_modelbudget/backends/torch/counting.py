"""Summarizing: choose what to run, run it at a few sizes, and put the rows together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.dimensions import DimensionNaming, Sizes, fixed_symbol_notes, resolve
from pytest_modelbudget.backends.torch.memory.activations import measure_activations
from pytest_modelbudget.backends.torch.memory.saved_tensors import Activations
from pytest_modelbudget.backends.torch.model import dtensors, keras_layers, real_copy
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.meta_tensors import MetaTensors, model_to_meta
from pytest_modelbudget.backends.torch.model.modules import all_modules, nodes, unwrap
from pytest_modelbudget.backends.torch.model.real_copy import ModelOrigin
from pytest_modelbudget.backends.torch.model.weights import any_packed, weights_of
from pytest_modelbudget.backends.torch.rows import rows
from pytest_modelbudget.backends.torch.trace import steering
from pytest_modelbudget.backends.torch.trace.calls import module_calls_patched
from pytest_modelbudget.backends.torch.trace.forward import ForwardFailed, ForwardPass, RunnableModel, forward
from pytest_modelbudget.backends.torch.trace.hints import is_for_want_of_values
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import Flops, Layer, Summary

FRAMEWORK = "torch"


@dataclass(frozen=True, slots=True)
class _PassesOfModel:
    """What is run, its pass at the declared sizes, and other passes at the same sizes, which only real runs have.

    `twins` ran on other values, or took other decisions, so what differs there is not known. Of `perturbed`, where
    masks pick otherwise, this holds for shapes alone: the sum of FLOPs may well be the same for all real choices.
    """

    runnable: RunnableModel
    base: ForwardPass
    twins: tuple[ForwardPass, ...] = ()
    perturbed: tuple[ForwardPass, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> Flops:
        """The FLOPs, unknown when they depend on the values."""
        same = all(twin.trace.flops == self.base.trace.flops for twin in self.twins)
        return Flops(self.base.trace.flops if same else None, tuple(sorted(self.base.trace.uncounted.items())))


def summarize(model: nn.Module, *, name: str, inputs: Inputs, sizes: Mapping[str, int], origin: ModelOrigin) -> Summary:
    """See `pytest_modelbudget.backends.Backend.summarize`."""
    with (
        torch.inference_mode(False),
        module_calls_patched(),
    ):  # inference tensors could not be saved for a backward pass
        shards = dtensors.sharding_notes(model)
        run = _run(unwrap(model), name, inputs, sizes, origin, bool(shards))
        return _summary(run, sizes, shards)


def _run(
    model: nn.Module, name: str, inputs: Inputs, sizes: Sizes, origin: ModelOrigin, in_shards: bool
) -> _PassesOfModel:
    on_values = partial(_run_on_values, model, name, inputs, sizes, origin)
    if origin.run == "real":
        return on_values(_ASKED_NOTE)
    modules = all_modules(model)
    if any_packed(modules) or any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        if origin.run == "abstract":
            raise ModelBudgetError(f"{name}: packed or scripted modules run on values only: remove `run: abstract`")
        return on_values(_PACKED_NOTE)
    fits = partial(real_copy.fits_in_memory, model)
    if origin.built_here:
        model_to_meta(model, MetaTensors())
    in_shards = in_shards and dtensors.has_shards(model)  # those of a builder's model are whole now
    may_run_on_values = not (origin.run == "abstract" or in_shards or (origin.built_here and not origin.rebuild))
    try:
        runnable = RunnableModel(name, model if origin.built_here else meta_copy(model), inputs)
        base = forward(runnable, sizes, keep=True)
        if not (base.refused and may_run_on_values and fits()):
            twins = steering.passes_on_other_values(runnable, sizes, base)
            return _PassesOfModel(runnable, base, twins, notes=steering.notes(base, twins))
    except ForwardFailed as error:
        if not (error.needs_values and may_run_on_values and (fits() or is_for_want_of_values(error.__cause__))):
            raise
        if not fits():
            raise ModelBudgetError(f"{error}\n  it needs to be run on values, {real_copy.too_large_error()}") from error
    return on_values(_VALUES_NOTE)


_ASKED_NOTE = "the model was run on the CPU on values, as `run: real` asks"
_PACKED_NOTE = "a copy was run on the CPU: packed or scripted modules cannot be run on the meta device"
_VALUES_NOTE = "a copy was run on the CPU, because the model needs values that the meta device does not have"
_SEEDS = (1, None)
"""Other random values, and zeros."""


def _run_on_values(
    model: nn.Module, name: str, inputs: Inputs, sizes: Mapping[str, int], origin: ModelOrigin, reason: str
) -> _PassesOfModel:
    """Run a copy with memory several times, on other inputs and with other weights."""
    runnable, base = _first_pass(
        RunnableModel(name, real_copy.with_values(model, name, origin), inputs, real=True, seed=0), sizes
    )
    perturbed = _passes_of(replace(runnable, perturbed="masks"), sizes)
    if not origin.built_here and inputs.example is not None:  # the user's own weights and inputs: nothing is drawn
        return _PassesOfModel(
            runnable, base, (), perturbed, (f"{reason}; its FLOPs are those of the inputs that were given",)
        )
    twins = tuple(_passes_on_other_values(runnable, sizes))
    value_notes = steering.notes(base, twins, real=True)
    if not twins:
        return _PassesOfModel(
            runnable, base, (), perturbed, (f"{reason}; it ran on one set of values only", *value_notes)
        )
    lowest, *_, highest = sorted(run.trace.flops for run in (base, *twins))
    if lowest == highest:
        return _PassesOfModel(runnable, base, twins, perturbed, (reason, *value_notes))
    spread = f"{units.flops(lowest)} to {units.flops(highest)} in {1 + len(twins)} runs"
    return _PassesOfModel(
        runnable, base, twins, perturbed, (f"{reason}, and its FLOPs depend on them: {spread}", *value_notes)
    )


def _first_pass(runnable: RunnableModel, sizes: Sizes) -> tuple[RunnableModel, ForwardPass]:
    """The first pass: on random values, or on zeros where those do not fit a table of ids."""
    try:
        return runnable, forward(runnable, sizes, keep=True)
    except ForwardFailed:
        zeros = replace(runnable, seed=None)
        return zeros, forward(zeros, sizes, keep=True)


def _passes_on_other_values(runnable: RunnableModel, sizes: Sizes) -> Iterator[ForwardPass]:
    yield from _passes_of(replace(runnable, perturbed="decisions"), sizes)
    for seed in _SEEDS:
        real_copy.redraw_parameters(runnable.model, seed)
        yield from _passes_of(replace(runnable, seed=seed, assumed="zeros" if seed else "mixed"), sizes)


def _passes_of(runnable: RunnableModel, sizes: Sizes) -> tuple[ForwardPass, ...]:
    """The pass of `runnable`, where it runs."""
    forward_pass = _forward_if_it_runs(runnable, sizes)
    return () if forward_pass is None else (forward_pass,)


_PassesBySizes = list[tuple[Sizes, ForwardPass]]


def _forward_if_it_runs(runnable: RunnableModel, sizes: Sizes) -> ForwardPass | None:
    try:
        return forward(runnable, sizes)
    except ModelBudgetError:
        return None


def _summary(run: _PassesOfModel, sizes: Sizes, shards: tuple[str, ...]) -> Summary:
    runnable, model_nodes = run.runnable, nodes(run.runnable.model)
    weights, unread_notes = weights_of(model_nodes, runnable.name)

    activations, activation_notes = _activations(run, sizes)
    keras_notes = keras_layers.notes(runnable.attributes.modules)

    def named(passes_by_sizes: Sequence[tuple[Sizes, ForwardPass]]) -> tuple[DimensionNaming, tuple[Layer, ...]]:
        naming, passes = (
            DimensionNaming([sizes for sizes, _ in passes_by_sizes]),
            [forward_pass for _, forward_pass in passes_by_sizes],
        )
        return naming, rows(model_nodes, weights, passes, naming, activations)

    passes_by_sizes = [(sizes, forward_pass) for forward_pass in (run.base, *run.twins, *run.perturbed)]
    naming, layers, passes_by_sizes = resolve(
        passes_by_sizes, lambda other_sizes: _forward_if_it_runs(runnable, other_sizes), named
    )
    return Summary(
        model=runnable.name,
        framework=FRAMEWORK,
        layers=layers,
        inputs=runnable.inputs.ports,
        outputs=naming.specs([forward_pass.outputs for _, forward_pass in passes_by_sizes]),
        flops=run.flops,
        activation_bytes=None if activations is None else activations.total,
        sizes=tuple(sizes.items()),
        notes=(
            *run.notes,
            *shards,
            *fixed_symbol_notes(passes_by_sizes),
            *unread_notes,
            *_autocast_notes(run),
            *activation_notes,
            *keras_notes,
        ),
        real_run=runnable.real,
    )


def _autocast_notes(run: _PassesOfModel) -> Iterator[str]:
    """What was seen in the pass that its result does not show."""
    if run.base.trace.autocast and not run.runnable.real:
        yield "autocast was on in the forward pass and is not followed: dtypes of outputs are those without it"


def _activations(run: _PassesOfModel, sizes: Sizes) -> tuple[Activations | None, tuple[str, ...]]:
    """What is held for the backward pass, and what has to be said of it."""
    if run.runnable.real:
        return None, ("activation_bytes is not known: it is measured on the meta device, and the model ran on values",)
    if not all(steering.same_calls(run.base, twin) for twin in run.twins):
        return None, ("activation_bytes is not known: it depends on the values of inputs",)
    if run.base.trace.autocast:
        return None, ("activation_bytes is not known: autocast in the forward pass is not followed",)
    if any(isinstance(module, nn.LSTM) and module.proj_size == 0 for module in run.runnable.attributes.modules):
        return None, ("activation_bytes is not known: an LSTM runs as one kernel with a workspace of its own",)
    activations = measure_activations(run.runnable, sizes)
    if isinstance(activations, str):
        return None, (f"activation_bytes is not known: {activations}",)
    return activations, (_SCORES_NOTE,) if activations.scores else ()


_SCORES_NOTE = (
    "activation_bytes has the scores of attention, which the CPU keeps for its dropout; a GPU's fused kernels do not, "
    "and training_peak_bytes is planned with those"
)
