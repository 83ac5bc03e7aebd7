"""Summarizing: choose what to run, run it at a few sizes, and put the rows together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.symbols import Sizes, vary, vary_again
from pytest_modelbudget.backends.torch import real, sharded
from pytest_modelbudget.backends.torch.activations import Activations, measured
from pytest_modelbudget.backends.torch.copying import ghost_of
from pytest_modelbudget.backends.torch.forward import ForwardFailed, Pass, Subject, forward
from pytest_modelbudget.backends.torch.ghosts import Ghosts, settle
from pytest_modelbudget.backends.torch.modules import Node, nodes, unwrapped
from pytest_modelbudget.backends.torch.rows import Naming, rows
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
    with torch.inference_mode(False):  # its tensors could not be saved for a backward pass
        shards = sharded.note(model)
        run = _run(unwrapped(model), name, inputs, sizes, built_here)
        others, notes = _other_passes(run, sizes)
        return _summary(run, sizes, others, (*shards, *notes))


def _run(model: nn.Module, name: str, inputs: Inputs, sizes: Mapping[str, int], built_here: bool) -> _Run:
    if built_here:
        settle(model, Ghosts())
    elif any(is_packed(module) or isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
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


def _other_passes(run: _Run, sizes: Sizes) -> tuple[list[tuple[Sizes, Pass]], list[str]]:
    """Passes at other sizes, to give the dimensions their names, and notes on symbols that could not be moved."""

    def again(other: Sizes) -> Pass | None:
        try:
            return forward(run.subject, other)
        except ModelBudgetError:
            return None

    notes = []
    found = vary(sizes, again)
    if len(found) == 1 and not _settled(run.subject, [(sizes, run.base), *found]):
        found += vary_again(sizes, found[0][0], again)
    for symbol in sizes:
        if all(other[symbol] == sizes[symbol] for other, _ in found):
            notes.append(
                f"the model runs only at {symbol}={sizes[symbol]}: dimensions that depend on {symbol} show numbers"
            )
    return found, notes


def _settled(subject: Subject, passes: Sequence[tuple[Sizes, Pass]]) -> bool:
    naming, found = Naming([sizes for sizes, _ in passes]), nodes(subject.model)
    rows(found, [()] * len(found), [one for _, one in passes], naming)
    return naming.settled


def _summary(run: _Run, sizes: Sizes, others: Sequence[tuple[Sizes, Pass]], notes: Sequence[str]) -> Summary:
    subject, twins = run.subject, [(sizes, run.twin)] if run.twin is not None else []
    found = nodes(subject.model)
    weights, unread = weights_of(found, subject.name)
    seen = [(sizes, run.base), *twins, *others]
    passes, naming = [one for _, one in seen], Naming([size for size, _ in seen])
    held, unheld = _activations(run, sizes)
    layers = _with_activations(rows(found, weights, passes, naming), found, held)
    return Summary(
        model=subject.name,
        framework=FRAMEWORK,
        layers=layers,
        inputs=subject.inputs.ports,
        outputs=naming.specs([one.outputs for one in passes]),
        flops=run.flops,
        activation_bytes=None if held is None else held.total,
        sizes=tuple(sizes.items()),
        notes=(*run.notes, *notes, *unread, *_limits(run), *unheld),
        real_run=subject.real,
    )


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
    if any(isinstance(module, nn.LSTM) and module.proj_size == 0 for module in run.subject.model.modules()):
        return None, ("activation_bytes is not known: an LSTM runs as one kernel with a workspace of its own",)
    held = measured(run.subject, sizes)
    return (None, (f"activation_bytes is not known: {held}",)) if isinstance(held, str) else (held, ())


def _with_activations(layers: Sequence[Layer], found: Sequence[Node], held: Activations | None) -> tuple[Layer, ...]:
    """The rows, each with the bytes that it saved first."""
    if held is None:
        return tuple(layers)
    modules = {node.path: id(node.module) for node in found}
    return tuple(
        replace(layer, activation_bytes=held.by_module.get(modules[layer.path], 0) if layer.path in modules else 0)
        for layer in layers
    )
