"""What a model decides by values: one real pass of a copy with memory, for plans on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import inf, prod

import torch
from torch import nn

from pytest_modelbudget.backends.torch.meta.answers import Answers, NotingDispatcher
from pytest_modelbudget.backends.torch.meta.readings import value_reads_observed
from pytest_modelbudget.backends.torch.model.modules import nodes, part_ids, unwrap
from pytest_modelbudget.backends.torch.model.real_copy import REAL_LIMIT, too_large_error
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, call_of, quiet_modes
from pytest_modelbudget.backends.torch.trace.observer import Observer, observing
from pytest_modelbudget.inputs import concrete_shape


def place_of(observer: Observer, model: nn.Module) -> Callable[[], str]:
    """What gives the path of the module of `model` that is at work under `observer`, empty outside of all."""
    paths = {id(node.module): node.path for node in nodes(model)}
    return lambda: paths.get(id(unwrap(observer.stack[-1])), "") if observer.stack else ""


def decisions_of(runnable: RunnableModel, sizes: Mapping[str, int], *, training: bool, limited: bool) -> Answers:
    """What the model of `runnable`, with memory, decides in a pass on random values, or on zeros where it must be.

    While `limited`, no input may have more than `REAL_LIMIT` bytes, and no operator make more.

    Raises:
        TooLarge: one would; whatever the model's own code raises comes through.
    """
    if limited and _largest_input(runnable, sizes) > REAL_LIMIT:
        raise too_large_error("one of its inputs takes")
    try:
        return _decisions(runnable, sizes, training=training, limited=limited)
    except (IndexError, RuntimeError):  # random numbers may not fit a table of ids
        return _decisions(replace(runnable, seed=None), sizes, training=training, limited=limited)


def _largest_input(runnable: RunnableModel, sizes: Mapping[str, int]) -> int:
    """Bytes of the largest input that is to be made; an example is there already."""
    specs = [port.spec for port in runnable.inputs.ports if runnable.inputs.example is None]
    return max((prod(concrete_shape(spec, sizes)) * getattr(torch, spec.dtype).itemsize for spec in specs), default=0)


def _decisions(runnable: RunnableModel, sizes: Mapping[str, int], *, training: bool, limited: bool) -> Answers:
    observer = Observer(part_ids(runnable.model))
    too_large = partial(too_large_error, "one of its tensors takes")
    dispatcher = NotingDispatcher(place_of(observer, runnable.model), too_large, REAL_LIMIT if limited else inf)
    call = call_of(runnable, sizes)
    try:
        with (
            quiet_modes(runnable, training), torch.no_grad(), value_reads_observed(dispatcher.note_read),
            observing(observer, dispatcher),
        ):  # fmt: skip
            runnable.model(*call.args, **call.kwargs)
    finally:
        runnable.attributes.restore()
    return Answers(dict(dispatcher.noted))
