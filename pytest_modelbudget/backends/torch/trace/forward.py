"""One forward pass at given sizes, and a clear error when it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from pytest_modelbudget.backends.patching import Shared, patch_all
from pytest_modelbudget.backends.torch.meta.cache import Memo, cache_for
from pytest_modelbudget.backends.torch.meta.dispatch import Following, Placing
from pytest_modelbudget.backends.torch.meta.readings import asking
from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.appearance import as_on_cpu
from pytest_modelbudget.backends.torch.model.attributes import Holdings
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.model.global_state import drawn_since, preserved_in_pass
from pytest_modelbudget.backends.torch.model.global_state import seed as fix_random_states
from pytest_modelbudget.backends.torch.model.modules import nodes
from pytest_modelbudget.backends.torch.model.packed_layers import Products
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, shape_of, tensors
from pytest_modelbudget.backends.torch.model.real_copy import reproducible
from pytest_modelbudget.backends.torch.replay.cache import Repeats
from pytest_modelbudget.backends.torch.trace.arguments import Assumed, Call, Choice, call_of
from pytest_modelbudget.backends.torch.trace.hints import about, hints, line, may_run_on_values
from pytest_modelbudget.backends.torch.trace.joins import Output, taken_whole
from pytest_modelbudget.backends.torch.trace.perturb import Perturbed, Perturbing
from pytest_modelbudget.backends.torch.trace.replayed import TraceLog
from pytest_modelbudget.backends.torch.trace.shown import shown
from pytest_modelbudget.backends.torch.trace.tracer import Trace, Watcher, watching
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import Input, TensorSpec
from pytest_modelbudget.system.debug import DebugLog, log_of_model


@dataclass(frozen=True, slots=True)
class Pass:
    """What one forward pass showed: the trace, the names of the inputs, and the tensors the model returned.

    `read` are the inputs whose values were assumed, and asked for; `drew` says that it drew random numbers,
    `refused` that it asked for values which it could not have, and went on.
    """

    trace: Trace
    ports: tuple[str, ...]
    outputs: tuple[Output, ...]
    read: tuple[Input, ...] = ()
    drew: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """What is run: a model on meta (or, with `real`, one with its weights on the CPU), and its call.

    Inputs without values are zeros in a real run, or random numbers when there is a `seed`; where that is `perturbed`,
    what it chooses by values falls otherwise. Without memory, ids and masks are what is `assumed`.
    """

    name: str
    model: nn.Module
    inputs: Inputs
    real: bool = False
    seed: int | None = None
    perturbed: Perturbed | None = None
    assumed: Assumed = "zeros"
    memo: Memo = field(init=False, compare=False, repr=False)
    holdings: Holdings = field(init=False, compare=False, repr=False)
    repeats: Repeats | None = field(init=False, compare=False, repr=False)
    products: Products = field(init=False, compare=False, repr=False)
    log: DebugLog | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """What is remembered from one pass to the next."""
        log = log_of_model()
        object.__setattr__(self, "log", log)
        object.__setattr__(self, "memo", cache_for(log))
        object.__setattr__(self, "holdings", Holdings(self.model))
        repeats = Repeats(self.model, self.holdings, log) if self._may_replay(log) else None
        object.__setattr__(self, "repeats", repeats)
        object.__setattr__(self, "products", Products(self.holdings.unusual))

    def _may_replay(self, log: DebugLog | None) -> bool:
        if self.real or keras_layers.among(self.holdings.modules):  # Keras' layers change more than themselves
            return False
        return log is None or log.uses("replay")


class ForwardFailed(ModelBudgetError):
    """The model does not run at its inputs; `needs_values` when it may well run on values."""

    def __init__(self, message: str, needs_values: bool) -> None:
        super().__init__(message)
        self.needs_values = needs_values


def forward(subject: Subject, sizes: Mapping[str, int], *, keep: bool = False) -> Pass:
    """Run the model once without gradients, in eval mode, whatever its flags say.

    What the model stores in itself meanwhile (caches, lazy weights) is undone, unless `keep` and the pass succeeds.

    Raises:
        ForwardFailed: with the layer, the inputs and the original message; the original is its `__cause__`.
    """
    build(subject, sizes)
    trace = Trace(subject.holdings.parts, subject.products)
    if subject.repeats is not None:
        trace.repeats = subject.repeats.start(TraceLog(trace))
    call = arguments(subject, sizes)
    try:
        with taken_whole(trace.whole), observed(subject, call, trace, keep=keep) as out:
            outputs = tuple((shape_of(tensor), dtype_name(tensor.dtype)) for tensor in tensors(out))
    except ModelBudgetError:
        raise
    except Exception as mistake:
        raise _failed(subject, trace, call, mistake) from mistake
    finally:
        trace.forget_tensors()
    names, seen = tuple(name for name, _ in call.ports), call.readings
    return Pass(trace, names, outputs, tuple(seen.read.values()), seen.drew, seen.refused)


def arguments(subject: Subject, sizes: Mapping[str, int], half: torch.dtype | None = None) -> Call:
    """The inputs of `subject` at `sizes`; floats in `half` where that is given."""
    return call_of(subject.inputs, sizes, Choice(subject.real, subject.seed, subject.assumed, half))


def build(subject: Subject, sizes: Mapping[str, int]) -> None:
    """Let Keras layers that wait for their first call have it; nothing where none does.

    No pass is to see how Keras builds: it calls layers to ask what they would give.

    Raises:
        ForwardFailed: as `forward`.
    """
    if not keras_layers.are_unbuilt(subject.holdings.modules):
        return
    call, trace = arguments(subject, sizes), Trace(subject.holdings.parts)
    try:
        with keras_layers.building(), calm(subject), watching(trace, _runner(subject, call)):
            subject.model(*call.args, **call.kwargs)
    except Exception as mistake:
        raise _failed(subject, trace, call, mistake) from mistake
    finally:
        trace.forget_tensors()
        subject.holdings.refresh()  # what was built stays so, also when the call failed further on


@contextmanager
def observed(
    subject: Subject,
    call: Call,
    watcher: Watcher,
    *,
    training: bool = False,
    keep: bool = False,
    then: Callable[[Any], object] | None = None,
) -> Iterator[Any]:
    """Call the model under `watcher` and yield what it returns; its errors come through as they are.

    Without `training` it runs in eval mode without gradients, else in training mode with them. What the model stored
    in itself is undone on leaving, unless `keep` and all went well. `then` is called with the result, still watched.
    """
    for name, tensor in call.ports:
        watcher.label(tensor, name)
    watcher = shown(watcher, subject.log, subject.model, call.ports)
    try:
        runner = _runner(subject, call)
        with calm(subject, training):
            with asking(runner.ask), watching(watcher, runner):
                out = subject.model(*call.args, **call.kwargs)
                if then is not None:
                    then(out)
            call.readings.drew = drawn_since(_seed(subject))
        yield out
    except BaseException:
        keep = False
        raise
    finally:
        if keep:
            subject.holdings.refresh()
        else:
            subject.holdings.put_back()


def _runner(subject: Subject, call: Call) -> Placing | Perturbing:
    """What runs the operators."""
    if subject.perturbed is not None:
        return Perturbing(subject.perturbed, [*call.drawn, *subject.model.parameters()])
    return (Following if subject.real else Placing)(subject.memo, call.readings)


@contextmanager
def calm(subject: Subject, training: bool = False, *, on_cpu: bool = True) -> Iterator[None]:
    """Eval mode without gradients, or training mode with them, no fused kernels that would hide layers.

    The model sees its tensors `on_cpu`, else where they are. Everything is as before on leaving.
    """
    modules = subject.holdings.modules
    flags = [(module, module.training) for module in modules if "training" in module.__dict__ or _has_flag(module)]
    with ExitStack() as stack:
        stack.enter_context(preserved_in_pass())
        stack.enter_context(keras_layers.running(training=training, on_meta=not subject.real))
        if not subject.real:
            stack.enter_context(_lazy_on_meta(modules))
            stack.enter_context(_ON_META.inside())
            if on_cpu:
                stack.enter_context(as_on_cpu(type(subject.model).__module__.partition(".")[0]))
        if _may_compile():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_SLOW_ATTENTION.inside())
        if subject.real:
            stack.enter_context(reproducible(_seed(subject)))
            stack.enter_context(_PLAIN_KERNELS.inside())
        else:
            fix_random_states(_seed(subject))
        for kind in ("cpu", "cuda"):  # what is around the model is the caller's affair; what forward enters counts
            stack.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
            torch.set_autocast_enabled(kind, False)
        stack.enter_context(torch.set_grad_enabled(training))
        stack.callback(_set_training, flags)
        _set_training([(module, training) for module, _ in flags])
        if training and any(type(module).train is not nn.Module.train for module in modules):
            subject.model.train()  # its own: some keep frozen parts in eval mode
        yield


def _seed(subject: Subject) -> int:
    """What the random states follow from; other ones for each way in which values are made up."""
    return (subject.seed or 0) + (0 if subject.real else get_args(Assumed).index(subject.assumed))


@contextmanager
def _lazy_on_meta(modules: Sequence[nn.Module]) -> Iterator[None]:
    """What a model builds in its first forward pass is built without memory, too."""
    if any(hasattr(kind, "_infer_parameters") for kind in set(map(type, modules))):
        with abstract():
            yield
    else:
        yield


def _on_meta() -> Callable[[], object]:
    """`torch.distributions` asks by default whether its parameters are in range, which only values could tell.

    `torch.autocast(x.device.type)` knows no device "meta": inside, it switches the CPU's flag there.
    """
    original: Callable[..., None] = torch.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    return patch_all([(torch.distributions.Distribution, "_validate_args", False), (torch.autocast, "__init__", init)])


def _plain_kernels() -> Callable[[], object]:
    """oneDNN's fused recurrent kernels cannot be counted; without it they are matrix products."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    return partial(torch._C._set_mkldnn_enabled, before)


_ON_META = Shared(_on_meta)
_SLOW_ATTENTION = Shared(lambda: patch_all([(torch.backends.mha, "_is_fastpath_enabled", False)]))
_PLAIN_KERNELS = Shared(_plain_kernels)


def _has_flag(module: nn.Module) -> bool:
    """Frozen scripts have no training flag any more."""
    return hasattr(module, "training")


def _set_training(flags: list[tuple[nn.Module, bool]]) -> None:
    """Set the flags; not by `train()`, which some models override to change their weights."""
    stored: dict[type, bool] = {}
    for module, training in flags:
        if module.training is training:
            continue
        kind = type(module)
        if kind not in stored:
            stored[kind] = kind.__setattr__ is nn.Module.__setattr__ and not hasattr(kind, "training")
        if stored[kind] and "training" in module.__dict__:  # past the slow `__setattr__` of modules
            module.__dict__["training"] = training
        else:
            module.training = training


def _may_compile() -> bool:
    """Whether something in the process may compile; asking torch itself would import a second's worth of modules."""
    return not sys.modules.keys().isdisjoint({"torch._dynamo", "torch.nn.attention.flex_attention"})


def _failed(subject: Subject, trace: Trace, call: Call, mistake: Exception) -> ForwardFailed:
    paths = {id(node.module): f"{node.path!r} ({node.type})" for node in nodes(subject.model)}
    layer = trace.failed.module if trace.failed is not None else subject.model
    where = paths.get(id(layer), f"of type {type(layer).__name__}")
    given = ", ".join(f"{name} {TensorSpec(shape_of(tensor), dtype_name(tensor.dtype))}" for name, tensor in call.ports)
    text = f"{type(mistake).__name__}: {mistake}".strip() + about(layer, mistake)
    head = f"{subject.name}: the forward pass failed in layer {where}{line(mistake)}\n  inputs: {given or '(none)'}"
    drawn = subject.real and subject.seed is not None
    cures = hints(mistake, subject.inputs, call, real=subject.real, drawn=drawn)
    values_may_help = may_run_on_values(mistake) or subject.holdings.has_kernels
    return ForwardFailed("\n  ".join((head, text, *cures)), not subject.real and values_may_help)
