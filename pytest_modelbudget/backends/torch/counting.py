"""Summarizing: choose what to run, run it at a few sizes, and put the rows together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.dimensions import Naming, Sizes, fixed, resolve
from pytest_modelbudget.backends.torch.memory.activations import measured
from pytest_modelbudget.backends.torch.memory.saved_tensors import Activations
from pytest_modelbudget.backends.torch.model import dtensors, keras_layers, real_copy
from pytest_modelbudget.backends.torch.model.meta_copy import ghost_of
from pytest_modelbudget.backends.torch.model.meta_tensors import Ghosts, settle
from pytest_modelbudget.backends.torch.model.modules import all_modules, nodes, unwrapped
from pytest_modelbudget.backends.torch.model.weights import any_packed, weights_of
from pytest_modelbudget.backends.torch.rows import rows
from pytest_modelbudget.backends.torch.trace import steering
from pytest_modelbudget.backends.torch.trace.calls import calls_shown
from pytest_modelbudget.backends.torch.trace.forward import ForwardFailed, Pass, Subject, forward
from pytest_modelbudget.backends.torch.trace.hints import is_for_want_of_values
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import Flops, Layer, Summary

FRAMEWORK = "torch"


Mode = Literal["real", "abstract"]
"""How a model is run: on values, or without. By itself (None) on values only where it has to be."""

Rebuild = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model is from: the user's own, or `built_here`; then `rebuild` makes it once more, with memory."""

    built_here: bool
    rebuild: Rebuild | None = None
    run: Mode | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """What is run, its pass at the declared sizes, and other passes at the same sizes, which only real runs have.

    `twins` ran on other values, or took other decisions, so what differs there is not known. Of `perturbed`, where
    masks pick otherwise, this holds for shapes alone: the sum of FLOPs may well be the same for all real choices.
    """

    subject: Subject
    base: Pass
    twins: tuple[Pass, ...] = ()
    perturbed: tuple[Pass, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> Flops:
        """The FLOPs, unknown when they depend on the values."""
        same = all(twin.trace.flops == self.base.trace.flops for twin in self.twins)
        return Flops(self.base.trace.flops if same else None, tuple(sorted(self.base.trace.uncounted.items())))


def summarize(model: nn.Module, *, name: str, inputs: Inputs, sizes: Mapping[str, int], origin: Origin) -> Summary:
    """See `pytest_modelbudget.backends.Backend.summarize`."""
    with torch.inference_mode(False), calls_shown():  # inference tensors could not be saved for a backward pass
        shards = dtensors.note(model)
        run = _run(unwrapped(model), name, inputs, sizes, origin, bool(shards))
        return _summary(run, sizes, shards)


def _run(model: nn.Module, name: str, inputs: Inputs, sizes: Sizes, origin: Origin, in_shards: bool) -> _Run:
    on_values = partial(_really, model, name, inputs, sizes, origin)
    if origin.run == "real":
        return on_values(_ASKED)
    modules = all_modules(model)
    if any_packed(modules) or any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        if origin.run == "abstract":
            raise ModelBudgetError(f"{name}: packed or scripted modules run on values only: remove `run: abstract`")
        return on_values(_PACKED)
    fits = partial(real_copy.fits, model)
    if origin.built_here:
        settle(model, Ghosts())
    in_shards = in_shards and dtensors.has_shards(model)  # those of a builder's model are whole now
    possible = not (origin.run == "abstract" or in_shards or (origin.built_here and not origin.rebuild))
    try:
        subject = Subject(name, model if origin.built_here else ghost_of(model), inputs)
        base = forward(subject, sizes, keep=True)
        if not (base.refused and possible and fits()):
            twins = steering.twins_of(subject, sizes, base)
            return _Run(subject, base, twins, notes=steering.notes(base, twins))
    except ForwardFailed as mistake:
        if not (mistake.needs_values and possible and (fits() or is_for_want_of_values(mistake.__cause__))):
            raise
        if not fits():
            raise ModelBudgetError(f"{mistake}\n  it needs to be run on values, {real_copy.too_large()}") from mistake
    return on_values(_VALUES)


_ASKED = "the model was run on the CPU on values, as `run: real` asks"
_PACKED = "a copy was run on the CPU: packed or scripted modules cannot be run on the meta device"
_VALUES = "a copy was run on the CPU, because the model needs values that the meta device does not have"
_SEEDS = (1, None)
"""Other random values, and zeros."""


def _really(model: nn.Module, name: str, inputs: Inputs, sizes: Mapping[str, int], origin: Origin, why: str) -> _Run:
    """Run a copy with memory several times, on other inputs and with other weights."""
    subject, base = _first(Subject(name, _with_values(model, name, origin), inputs, real=True, seed=0), sizes)
    perturbed = _passes(replace(subject, perturbed="masks"), sizes)
    if not origin.built_here and inputs.example is not None:  # the user's own weights and inputs: nothing is drawn
        return _Run(subject, base, (), perturbed, (f"{why}; its FLOPs are those of the inputs that were given",))
    twins = tuple(_twins(subject, sizes))
    read = steering.notes(base, twins, real=True)
    if not twins:
        return _Run(subject, base, (), perturbed, (f"{why}; it ran on one set of values only", *read))
    lowest, *_, highest = sorted(run.trace.flops for run in (base, *twins))
    if lowest == highest:
        return _Run(subject, base, twins, perturbed, (why, *read))
    spread = f"{units.flops(lowest)} to {units.flops(highest)} in {1 + len(twins)} runs"
    return _Run(subject, base, twins, perturbed, (f"{why}, and its FLOPs depend on them: {spread}", *read))


def _first(subject: Subject, sizes: Sizes) -> tuple[Subject, Pass]:
    """The first pass: on random values, or on zeros where those do not fit a table of ids."""
    try:
        return subject, forward(subject, sizes, keep=True)
    except ForwardFailed:
        zeros = replace(subject, seed=None)
        return zeros, forward(zeros, sizes, keep=True)


def _with_values(model: nn.Module, name: str, origin: Origin) -> nn.Module:
    """What can be run on values: a copy of a user's model, or the model of a builder made once more."""
    if origin.rebuild is not None:
        return unwrapped(real_copy.rebuilt(origin.rebuild, name))
    return real_copy.copy_of(model, name, limited=origin.run != "real")


def _twins(subject: Subject, sizes: Sizes) -> Iterator[Pass]:
    yield from _passes(replace(subject, perturbed="decisions"), sizes)
    for seed in _SEEDS:
        real_copy.redraw(subject.model, seed)
        yield from _passes(replace(subject, seed=seed, assumed="zeros" if seed else "mixed"), sizes)


def _passes(subject: Subject, sizes: Sizes) -> tuple[Pass, ...]:
    """The pass of `subject`, where it runs."""
    seen = _again(subject, sizes)
    return () if seen is None else (seen,)


_Seen = list[tuple[Sizes, Pass]]


def _again(subject: Subject, sizes: Sizes) -> Pass | None:
    try:
        return forward(subject, sizes)
    except ModelBudgetError:
        return None


def _summary(run: _Run, sizes: Sizes, shards: tuple[str, ...]) -> Summary:
    subject, listed = run.subject, nodes(run.subject.model)
    weights, unread = weights_of(listed, subject.name)

    held, unheld = _activations(run, sizes)
    of_keras = keras_layers.notes(subject.holdings.modules)

    def named(seen: Sequence[tuple[Sizes, Pass]]) -> tuple[Naming, tuple[Layer, ...]]:
        naming, passes = Naming([sizes for sizes, _ in seen]), [forward_pass for _, forward_pass in seen]
        return naming, rows(listed, weights, passes, naming, held)

    seen = [(sizes, forward_pass) for forward_pass in (run.base, *run.twins, *run.perturbed)]
    naming, layers, seen = resolve(seen, lambda other: _again(subject, other), named)
    return Summary(
        model=subject.name,
        framework=FRAMEWORK,
        layers=layers,
        inputs=subject.inputs.ports,
        outputs=naming.specs([forward_pass.outputs for _, forward_pass in seen]),
        flops=run.flops,
        activation_bytes=None if held is None else held.total,
        sizes=tuple(sizes.items()),
        notes=(*run.notes, *shards, *_fixed(sizes, seen), *unread, *_limits(run), *unheld, *of_keras),
        real_run=subject.real,
    )


def _fixed(sizes: Sizes, seen: _Seen) -> Iterator[str]:
    """What is to be said of the symbols that could not be moved."""
    for symbol in fixed(seen):
        yield f"the model runs only at {symbol}={sizes[symbol]}: dimensions that depend on {symbol} show numbers"


def _limits(run: _Run) -> Iterator[str]:
    """What was seen in the pass that its result does not show."""
    if run.base.trace.autocast and not run.subject.real:
        yield "autocast was on in the forward pass and is not followed: dtypes of outputs are those without it"


def _activations(run: _Run, sizes: Sizes) -> tuple[Activations | None, tuple[str, ...]]:
    """What is held for the backward pass, and what has to be said of it."""
    if run.subject.real:
        return None, ("activation_bytes is not known: it is measured on the meta device, and the model ran on values",)
    if not all(steering.same(run.base, twin) for twin in run.twins):
        return None, ("activation_bytes is not known: it depends on the values of inputs",)
    if run.base.trace.autocast:
        return None, ("activation_bytes is not known: autocast in the forward pass is not followed",)
    if any(isinstance(module, nn.LSTM) and module.proj_size == 0 for module in run.subject.holdings.modules):
        return None, ("activation_bytes is not known: an LSTM runs as one kernel with a workspace of its own",)
    held = measured(run.subject, sizes)
    if isinstance(held, str):
        return None, (f"activation_bytes is not known: {held}",)
    return held, (_SCORES,) if held.scores else ()


_SCORES = (
    "activation_bytes has the scores of attention, which the CPU keeps for its dropout; a GPU's fused kernels do not, "
    "and training_peak_bytes is planned with those"
)
