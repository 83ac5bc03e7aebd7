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

from pytest_modelbudget.backends.patching import SharedChange, patch_all
from pytest_modelbudget.backends.torch.meta.cache import MetaCache, cache_for
from pytest_modelbudget.backends.torch.meta.dispatch import MetaDispatcher, RealDispatcher
from pytest_modelbudget.backends.torch.meta.readings import value_reads_observed
from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.appearance import as_on_cpu
from pytest_modelbudget.backends.torch.model.attributes import ModuleAttributes
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.model.global_state import global_state_restored_in_pass, rng_moved_since
from pytest_modelbudget.backends.torch.model.global_state import seed_everything as fix_random_states
from pytest_modelbudget.backends.torch.model.modules import nodes
from pytest_modelbudget.backends.torch.model.packed_layers import PackedProducts
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, shape_of, tensors
from pytest_modelbudget.backends.torch.model.real_copy import reproducible
from pytest_modelbudget.backends.torch.replay.cache import BlockCache
from pytest_modelbudget.backends.torch.trace.arguments import AssumedValues, ModelCall, ValuePolicy, make_call
from pytest_modelbudget.backends.torch.trace.hints import hints, layer_text, may_run_on_values, source_line
from pytest_modelbudget.backends.torch.trace.joins import ShapeDtype, as_one_operator
from pytest_modelbudget.backends.torch.trace.observer import Observer, observing
from pytest_modelbudget.backends.torch.trace.perturb import Perturbation, PerturbingRunner
from pytest_modelbudget.backends.torch.trace.shown import shown
from pytest_modelbudget.backends.torch.trace.tracer import ModuleTrace
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import Input, TensorSpec
from pytest_modelbudget.system.debug import DebugLog, log_of_model


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What one forward pass showed: the trace, the names of the inputs, and the tensors the model returned.

    `read_inputs` are the inputs whose values were assumed, and asked for; `drew` says that it drew random numbers,
    `refused` that it asked for values which it could not have, and went on.
    """

    trace: ModuleTrace
    ports: tuple[str, ...]
    outputs: tuple[ShapeDtype, ...]
    read_inputs: tuple[Input, ...] = ()
    drew: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class RunnableModel:
    """What is run: a model on meta (or, with `real`, one with its weights on the CPU), and its call.

    Inputs without values are zeros in a real run, or random numbers when there is a `seed`; where that is `perturbed`,
    what it chooses by values falls otherwise. Without memory, ids and masks are what is `assumed`.
    """

    name: str
    model: nn.Module
    inputs: Inputs
    real: bool = False
    seed: int | None = None
    perturbed: Perturbation | None = None
    assumed: AssumedValues = "zeros"
    meta_cache: MetaCache = field(init=False, compare=False, repr=False)
    attributes: ModuleAttributes = field(init=False, compare=False, repr=False)
    block_cache: BlockCache | None = field(init=False, compare=False, repr=False)
    products: PackedProducts = field(init=False, compare=False, repr=False)
    log: DebugLog | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """What is remembered from one pass to the next."""
        log = log_of_model()
        object.__setattr__(self, "log", log)
        object.__setattr__(self, "meta_cache", cache_for(log))
        object.__setattr__(self, "attributes", ModuleAttributes(self.model))
        repeats = BlockCache(self.model, self.attributes, log) if self._may_replay_blocks(log) else None
        object.__setattr__(self, "block_cache", repeats)
        object.__setattr__(self, "products", PackedProducts(self.attributes.unusual))

    def _may_replay_blocks(self, log: DebugLog | None) -> bool:
        if self.real or keras_layers.among(self.attributes.modules):  # Keras' layers change more than themselves
            return False
        return log is None or log.uses("replay")


class ForwardFailed(ModelBudgetError):
    """The model does not run at its inputs; `needs_values` when it may well run on values."""

    def __init__(self, message: str, needs_values: bool) -> None:
        super().__init__(message)
        self.needs_values = needs_values


def forward(runnable: RunnableModel, sizes: Mapping[str, int], *, keep: bool = False) -> ForwardPass:
    """Run the model once without gradients, in eval mode, whatever its flags say.

    What the model stores in itself meanwhile (caches, lazy weights) is undone, unless `keep` and the pass succeeds.

    Raises:
        ForwardFailed: with the layer, the inputs and the original message; the original is its `__cause__`.
    """
    build_keras_layers(runnable, sizes)
    trace = ModuleTrace(runnable.attributes.parts, runnable.products)
    if runnable.block_cache is not None:
        trace.replay = runnable.block_cache.start(trace)
    call = call_of(runnable, sizes)
    try:
        with as_one_operator(trace.run_as_one), observed(runnable, call, trace, keep=keep) as out:
            outputs = tuple((shape_of(tensor), dtype_name(tensor.dtype)) for tensor in tensors(out))
    except ModelBudgetError:
        raise
    except Exception as error:
        raise _failure(runnable, trace, call, error) from error
    finally:
        trace.forget_tensors()
    port_names, readings = tuple(name for name, _ in call.ports), call.readings
    return ForwardPass(
        trace, port_names, outputs, tuple(readings.read_inputs.values()), readings.drew, readings.refused
    )


def call_of(runnable: RunnableModel, sizes: Mapping[str, int], half: torch.dtype | None = None) -> ModelCall:
    """The inputs of `runnable` at `sizes`; floats in `half` where that is given."""
    return make_call(runnable.inputs, sizes, ValuePolicy(runnable.real, runnable.seed, runnable.assumed, half))


def build_keras_layers(runnable: RunnableModel, sizes: Mapping[str, int]) -> None:
    """Let Keras layers that wait for their first call have it; nothing where none does.

    No pass is to see how Keras builds: it calls layers to ask what they would give.

    Raises:
        ForwardFailed: as `forward`.
    """
    if not keras_layers.any_unbuilt(runnable.attributes.modules):
        return
    call, trace = call_of(runnable, sizes), ModuleTrace(runnable.attributes.parts)
    try:
        with keras_layers.building(), quiet_modes(runnable), observing(trace, _operator_runner(runnable, call)):
            runnable.model(*call.args, **call.kwargs)
    except Exception as error:
        raise _failure(runnable, trace, call, error) from error
    finally:
        trace.forget_tensors()
        runnable.attributes.refresh()  # what was built stays so, also when the call failed further on


@contextmanager
def observed(
    runnable: RunnableModel,
    call: ModelCall,
    observer: Observer,
    *,
    training: bool = False,
    keep: bool = False,
) -> Iterator[Any]:
    """Call the model under `observer` and yield what it returns; its errors come through as they are.

    Without `training` it runs in eval mode without gradients, else in training mode with them. What the model stored
    in itself is undone on leaving, unless `keep` and all went well.
    """
    for name, tensor in call.ports:
        observer.label(tensor, name)
    observer = shown(observer, runnable.log, runnable.model, call.ports)
    try:
        runner = _operator_runner(runnable, call)
        with quiet_modes(runnable, training):
            with value_reads_observed(runner.note_read), observing(observer, runner):
                out = runnable.model(*call.args, **call.kwargs)
            call.readings.drew = rng_moved_since(_seed_of(runnable))
        yield out
    except BaseException:
        keep = False
        raise
    finally:
        if keep:
            runnable.attributes.refresh()
        else:
            runnable.attributes.restore()


def _operator_runner(runnable: RunnableModel, call: ModelCall) -> MetaDispatcher | PerturbingRunner:
    """What runs the operators."""
    if runnable.perturbed is not None:
        return PerturbingRunner(runnable.perturbed, [*call.drawn, *runnable.model.parameters()])
    return (RealDispatcher if runnable.real else MetaDispatcher)(runnable.meta_cache, call.readings)


@contextmanager
def quiet_modes(runnable: RunnableModel, training: bool = False, *, on_cpu: bool = True) -> Iterator[None]:
    """Eval mode without gradients, or training mode with them, no fused kernels that would hide layers.

    The model sees its tensors `on_cpu`, else where they are. Everything is as before on leaving.
    """
    modules = runnable.attributes.modules
    flags = [
        (module, module.training) for module in modules if "training" in module.__dict__ or _has_training_flag(module)
    ]
    with ExitStack() as stack:
        stack.enter_context(global_state_restored_in_pass())
        stack.enter_context(keras_layers.running(training=training, on_meta=not runnable.real))
        if not runnable.real:
            stack.enter_context(_lazy_on_meta(modules))
            stack.enter_context(_META_PATCH.inside())
            if on_cpu:
                stack.enter_context(as_on_cpu(type(runnable.model).__module__.partition(".")[0]))
        if _may_compile():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_NO_FAST_ATTENTION.inside())
        if runnable.real:
            stack.enter_context(reproducible(_seed_of(runnable)))
            stack.enter_context(_NO_ONEDNN.inside())
        else:
            fix_random_states(_seed_of(runnable))
        for kind in ("cpu", "cuda"):  # what is around the model is the caller's affair; what forward enters counts
            stack.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
            torch.set_autocast_enabled(kind, False)
        stack.enter_context(torch.set_grad_enabled(training))
        stack.callback(_set_training, flags)
        _set_training([(module, training) for module, _ in flags])
        if training and any(type(module).train is not nn.Module.train for module in modules):
            runnable.model.train()  # its own: some keep frozen parts in eval mode
        yield


def _seed_of(runnable: RunnableModel) -> int:
    """What the random states follow from; other ones for each way in which values are made up."""
    return (runnable.seed or 0) + (0 if runnable.real else get_args(AssumedValues).index(runnable.assumed))


@contextmanager
def _lazy_on_meta(modules: Sequence[nn.Module]) -> Iterator[None]:
    """What a model builds in its first forward pass is built without memory, too."""
    if any(hasattr(kind, "_infer_parameters") for kind in set(map(type, modules))):
        with abstract():
            yield
    else:
        yield


def _patch_for_meta() -> Callable[[], object]:
    """`torch.distributions` asks by default whether its parameters are in range, which only values could tell.

    `torch.autocast(x.device.type)` knows no device "meta": inside, it switches the CPU's flag there.
    """
    original: Callable[..., None] = torch.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    return patch_all([(torch.distributions.Distribution, "_validate_args", False), (torch.autocast, "__init__", init)])


def _disable_onednn() -> Callable[[], object]:
    """oneDNN's fused recurrent kernels cannot be counted; without it they are matrix products."""
    was_enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    return partial(torch._C._set_mkldnn_enabled, was_enabled)


_META_PATCH = SharedChange(_patch_for_meta)
_NO_FAST_ATTENTION = SharedChange(lambda: patch_all([(torch.backends.mha, "_is_fastpath_enabled", False)]))
_NO_ONEDNN = SharedChange(_disable_onednn)


def _has_training_flag(module: nn.Module) -> bool:
    """Frozen scripts have no training flag any more."""
    return hasattr(module, "training")


def _set_training(flags: list[tuple[nn.Module, bool]]) -> None:
    """Set the flags; not by `train()`, which some models override to change their weights."""
    in_dict: dict[type, bool] = {}
    for module, training in flags:
        if module.training is training:
            continue
        kind = type(module)
        if kind not in in_dict:
            in_dict[kind] = kind.__setattr__ is nn.Module.__setattr__ and not hasattr(kind, "training")
        if in_dict[kind] and "training" in module.__dict__:  # past the slow `__setattr__` of modules
            module.__dict__["training"] = training
        else:
            module.training = training


def _may_compile() -> bool:
    """Whether something in the process may compile; asking torch itself would import a second's worth of modules."""
    return not sys.modules.keys().isdisjoint({"torch._dynamo", "torch.nn.attention.flex_attention"})


def _failure(runnable: RunnableModel, trace: ModuleTrace, call: ModelCall, error: Exception) -> ForwardFailed:
    paths = {id(node.module): f"{node.path!r} ({node.type})" for node in nodes(runnable.model)}
    layer = runnable.model if trace.failed is None else trace.failed
    where = paths.get(id(layer), f"of type {type(layer).__name__}")
    inputs = ", ".join(
        f"{name} {TensorSpec(shape_of(tensor), dtype_name(tensor.dtype))}" for name, tensor in call.ports
    )
    text = f"{type(error).__name__}: {error}".strip() + layer_text(layer, error)
    head = (
        f"{runnable.name}: the forward pass failed in layer {where}{source_line(error)}\n  inputs: {inputs or '(none)'}"
    )
    drawn = runnable.real and runnable.seed is not None
    cures = hints(error, runnable.inputs, call, real=runnable.real, drawn=drawn)
    values_may_help = may_run_on_values(error) or runnable.attributes.has_kernels
    return ForwardFailed("\n  ".join((head, text, *cures)), not runnable.real and values_may_help)
