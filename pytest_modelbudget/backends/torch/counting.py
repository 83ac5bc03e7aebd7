"""Summarizing: choose what to run, run it at a few sizes, and put the rows together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.symbols import Sizes, vary, vary_again
from pytest_modelbudget.backends.torch import keras_layers, real, sharded
from pytest_modelbudget.backends.torch.activations import measured
from pytest_modelbudget.backends.torch.copying import ghost_of
from pytest_modelbudget.backends.torch.forward import ForwardFailed, Pass, Subject, forward
from pytest_modelbudget.backends.torch.ghosts import Ghosts, settle
from pytest_modelbudget.backends.torch.modules import all_modules, nodes, unwrapped
from pytest_modelbudget.backends.torch.rows import Naming, rows
from pytest_modelbudget.backends.torch.saved import Activations
from pytest_modelbudget.backends.torch.trace import calls_shown
from pytest_modelbudget.backends.torch.weights import is_packed, weights_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import Flops, Layer, Summary

FRAMEWORK = "torch"


@dataclass(frozen=True, slots=True)
class _Run:
    """What is run, its pass at the declared sizes, and its twin: one with the same sizes and other values.

    Only a real run has a twin: what differs between the two depends on the values, and is not known.
    """

    subject: Subject
    base: Pass
    twin: Pass | None = None
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> Flops:
        """The FLOPs, unknown when they depend on the values."""
        value = self.base.trace.flops if self.twin is None or self.twin.trace.flops == self.base.trace.flops else None
        return Flops(value, tuple(sorted(self.base.trace.uncounted.items())))


def summarize(model: nn.Module, *, name: str, inputs: Inputs, sizes: Mapping[str, int], built_here: bool) -> Summary:
    """See `pytest_modelbudget.backends.Backend.summarize`."""
    with torch.inference_mode(False), calls_shown():  # inference tensors could not be saved for a backward pass
        shards = sharded.note(model)
        run = _run(unwrapped(model), name, inputs, sizes, built_here)
        return _summary(run, sizes, shards)


def _run(model: nn.Module, name: str, inputs: Inputs, sizes: Mapping[str, int], built_here: bool) -> _Run:
    if built_here:
        settle(model, Ghosts())
    elif any(is_packed(module) or isinstance(module, torch.jit.ScriptModule) for module in all_modules(model)):
        subject = Subject(name, real.copy_of(model, name), inputs, real=True)
        return _Run(subject, forward(subject, sizes, keep=True), notes=(_PACKED,))
    try:
        subject = Subject(name, model if built_here else ghost_of(model), inputs)
        return _Run(subject, forward(subject, sizes, keep=True))
    except ForwardFailed as mistake:
        if not mistake.needs_values or not real.fits(model) or sharded.note(model):
            raise
    return _really(model, name, inputs, sizes, built_here)


_PACKED = "a copy was run on the CPU: packed or scripted modules cannot be run on the meta device"
_VALUES = "a copy was run on the CPU, because the model needs values that the meta device does not have"


def _really(model: nn.Module, name: str, inputs: Inputs, sizes: Mapping[str, int], built_here: bool) -> _Run:
    """Run a copy twice, with other values: zeros and random inputs, for a model built here weights likewise."""
    first = Subject(name, real.filled(model) if built_here else real.copy_of(model, name), inputs, real=True)
    base = forward(first, sizes, keep=True)
    if built_here:
        real.fill_again(first.model, seed=0)
    try:
        twin = forward(replace(first, seed=1), sizes)
    except ForwardFailed:
        return _Run(first, base, None, (f"{_VALUES}; it ran on zeros only",))
    seen = sorted((base.trace.flops, twin.trace.flops))
    if seen[0] == seen[1]:
        return _Run(first, base, twin, (_VALUES,))
    spread = f"{units.flops(seen[0])} and {units.flops(seen[1])} in two runs"
    return _Run(first, base, twin, (f"{_VALUES}, and its FLOPs depend on them: {spread}",))


_Seen = list[tuple[Sizes, Pass]]


def _again(run: _Run, sizes: Sizes) -> Pass | None:
    try:
        return forward(run.subject, sizes)
    except ModelBudgetError:
        return None


def _summary(run: _Run, sizes: Sizes, shards: tuple[str, ...]) -> Summary:
    subject, found = run.subject, nodes(run.subject.model)
    weights, unread = weights_of(found, subject.name)

    held, unheld = _activations(run, sizes)
    of_keras = keras_layers.notes(subject.holdings.modules)

    def named(seen: _Seen) -> tuple[Naming, tuple[Layer, ...]]:
        naming, passes = Naming([sizes for sizes, _ in seen]), [one for _, one in seen]
        return naming, rows(found, weights, passes, naming, held)

    # Passes at other sizes give the dimensions their names.
    others = vary(sizes, lambda other: _again(run, other))
    twins = [(sizes, run.twin)] if run.twin is not None else []
    seen = [(sizes, run.base), *twins, *others]
    naming, layers = named(seen)
    if len(others) == 1 and not naming.settled:
        seen += vary_again(sizes, others[0][0], lambda other: _again(run, other))
        naming, layers = named(seen)
    return Summary(
        model=subject.name,
        framework=FRAMEWORK,
        layers=layers,
        inputs=subject.inputs.ports,
        outputs=naming.specs([one.outputs for _, one in seen]),
        flops=run.flops,
        activation_bytes=None if held is None else held.total,
        sizes=tuple(sizes.items()),
        notes=(*run.notes, *shards, *_fixed(sizes, seen), *unread, *_limits(run), *unheld, *of_keras),
        real_run=subject.real,
    )


def _fixed(sizes: Sizes, seen: _Seen) -> Iterator[str]:
    """The symbols that could not be moved."""
    for symbol in sizes:
        if all(other[symbol] == sizes[symbol] for other, _ in seen):
            yield f"the model runs only at {symbol}={sizes[symbol]}: dimensions that depend on {symbol} show numbers"


def _limits(run: _Run) -> Iterator[str]:
    """What was seen in the pass that its result does not show."""
    if run.base.trace.autocast and not run.subject.real:
        yield "autocast was on in the forward pass and is not followed: dtypes of outputs are those without it"


def _activations(run: _Run, sizes: Sizes) -> tuple[Activations | None, tuple[str, ...]]:
    """What is held for the backward pass, and what has to be said of it."""
    if run.subject.real:
        return None, ("activation_bytes is not known: the model cannot be run on the meta device",)
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
