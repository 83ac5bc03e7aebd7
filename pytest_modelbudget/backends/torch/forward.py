"""One forward pass at given sizes, and a clear error when it fails."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.patching import Shared, patch_all
from pytest_modelbudget.backends.torch.build import abstract
from pytest_modelbudget.backends.torch.ghosts import CONSTANT, META
from pytest_modelbudget.backends.torch.holding import Holdings
from pytest_modelbudget.backends.torch.joins import Output, taken_whole
from pytest_modelbudget.backends.torch.memo import Memo
from pytest_modelbudget.backends.torch.modules import nodes
from pytest_modelbudget.backends.torch.placing import NeedsValues, Placing
from pytest_modelbudget.backends.torch.repeats import Repeats
from pytest_modelbudget.backends.torch.retelling import TraceLog
from pytest_modelbudget.backends.torch.state import preserved_in_pass
from pytest_modelbudget.backends.torch.trace import Trace, Watcher, watching
from pytest_modelbudget.backends.torch.trees import dtype_name, tensors
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs, concrete
from pytest_modelbudget.summary import TensorSpec


@dataclass(frozen=True, slots=True)
class Pass:
    """What one forward pass showed: the trace, the names of the inputs, and the tensors the model returned."""

    trace: Trace
    ports: tuple[str, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is run: a model on meta (or, with `real`, one with its weights on the CPU), and its call.

    A real run is on zeros, or on random numbers when there is a `seed`.
    """

    name: str
    model: nn.Module
    inputs: Inputs
    real: bool = False
    seed: int | None = None
    memo: Memo = field(init=False, compare=False, repr=False)
    holdings: Holdings = field(init=False, compare=False, repr=False)
    repeats: Repeats | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """What is remembered from one pass to the next."""
        object.__setattr__(self, "memo", Memo())
        object.__setattr__(self, "holdings", Holdings(self.model))
        object.__setattr__(self, "repeats", None if self.real else Repeats(self.model, self.holdings))


class ForwardFailed(ModelBudgetError):
    """The model does not run at its inputs; `needs_values` when only because the meta device holds no values."""

    def __init__(self, message: str, needs_values: bool) -> None:
        super().__init__(message)
        self.needs_values = needs_values


def forward(subject: Subject, sizes: Mapping[str, int], *, keep: bool = False) -> Pass:
    """Run the model once without gradients, in eval mode, whatever its flags say.

    What the model stores in itself meanwhile (caches, lazy weights) is undone, unless `keep` and the pass succeeds.

    Raises:
        ForwardFailed: with the layer, the inputs and the original message; the original is its `__cause__`.
    """
    trace = Trace(subject.holdings.parts)
    if subject.repeats is not None:
        trace.repeats = subject.repeats.start(TraceLog(trace))
    call = arguments(subject, sizes)
    try:
        with taken_whole(trace.whole), observed(subject, call, trace, keep=keep) as out:
            outputs = tuple((tuple(tensor.shape), dtype_name(tensor.dtype)) for tensor in tensors(out))
    except ModelBudgetError:
        raise
    except Exception as mistake:
        raise _failed(subject, trace, call.ports, mistake) from mistake
    finally:
        trace.forget_tensors()
    return Pass(trace, tuple(name for name, _ in call.ports), outputs)


@dataclass(frozen=True, slots=True)
class Call:
    """What the model is called with; `ports` are the tensors in it, with their names."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ports: list[tuple[str, torch.Tensor]]


def arguments(subject: Subject, sizes: Mapping[str, int]) -> Call:
    """The inputs of `subject` at `sizes`."""
    ports: list[tuple[str, torch.Tensor]] = []

    def make(name: str, spec: TensorSpec) -> torch.Tensor:
        tensor = _input(name, spec, sizes, subject)
        ports.append((name, tensor))
        return tensor

    args, kwargs = subject.inputs.build(make)
    return Call(args, kwargs, ports)


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
    try:
        with calm(subject, training), watching(watcher, None if subject.real else Placing(subject.memo)):
            out = subject.model(*call.args, **call.kwargs)
            if then is not None:
                then(out)
        yield out
    except BaseException:
        keep = False
        raise
    finally:
        if keep:
            subject.holdings.refresh()
        else:
            subject.holdings.put_back()


def _input(name: str, spec: TensorSpec, sizes: Mapping[str, int], subject: Subject) -> torch.Tensor:
    """Zeros; ids and masks keep their values, floats have none (unless the run is real)."""
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelBudgetError(f"inputs: {name}: torch has no tensors of dtype {spec.dtype!r}")
    shape = concrete(spec, sizes)
    if subject.real:
        zeros = torch.zeros(shape, dtype=dtype, device="cpu")
        return zeros if subject.seed is None else _other_values(zeros, torch.Generator().manual_seed(subject.seed))
    tensor = torch.empty(shape, dtype=dtype, device=META)
    whole = not (dtype.is_floating_point or dtype.is_complex)
    return torch.zeros(shape, dtype=dtype, device="cpu") if whole and tensor.numel() <= CONSTANT else tensor


def _other_values(tensor: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Floats of both signs; ids and masks of 0 and 1, which hardly any table is too small for."""
    if tensor.is_floating_point():
        return tensor.uniform_(-1, 1, generator=dice)
    return tensor if tensor.is_complex() else tensor.random_(0, 2, generator=dice)


@contextmanager
def calm(subject: Subject, training: bool = False) -> Iterator[None]:
    """Eval mode without gradients, or training mode with them, no fused kernels that would hide layers.

    Everything is as before on leaving.
    """
    modules = subject.holdings.modules
    flags = [(module, module.training) for module in modules]
    with ExitStack() as stack:
        stack.enter_context(preserved_in_pass())
        if not subject.real:
            stack.enter_context(_lazy_on_meta(modules))
            stack.enter_context(_ON_META.inside())
        if _may_compile():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_SLOW_ATTENTION.inside())
        if subject.real:
            stack.enter_context(_PLAIN_KERNELS.inside())
        for kind in ("cpu", "cuda"):  # what is around the model is the caller's affair; what forward enters counts
            stack.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
            torch.set_autocast_enabled(kind, False)
        stack.enter_context(torch.set_grad_enabled(training))
        stack.callback(_set_training, flags)
        _set_training([(module, training) for module in modules])
        if training and any(type(module).train is not nn.Module.train for module in modules):
            subject.model.train()  # its own: some keep frozen parts in eval mode
        yield


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


def _failed(subject: Subject, trace: Trace, ports: list[tuple[str, torch.Tensor]], mistake: Exception) -> ForwardFailed:
    paths = {id(node.module): f"{node.path!r} ({node.type})" for node in nodes(subject.model)}
    layer = trace.failed.module if trace.failed is not None else subject.model
    where = paths.get(id(layer), f"of type {type(layer).__name__}")
    given = ", ".join(f"{name} {dtype_name(tensor.dtype)}{list(tensor.shape)}" for name, tensor in ports)
    text = f"{type(mistake).__name__}: {mistake}".strip()
    head = f"{subject.name}: the forward pass failed in layer {where}{_line(mistake)}\n  inputs: {given or '(none)'}"
    if not subject.real and _needs_values(mistake):
        cure = (
            "the model decides by the values of its activations, and weights without memory have none;\n"
            "  it would have been run on the CPU instead, but its weights are larger than 1 GiB: register a smaller one"
        )
        return ForwardFailed(f"{head}\n  {text}\n  {cure}", True)
    return ForwardFailed(
        f"{head}\n  {text}\n  check that `inputs:` fits what the model expects", _on_meta_only(mistake)
    )


def _needs_values(mistake: Exception) -> bool:
    text = str(mistake)
    known = (
        "Cannot copy out of meta",
        "item() cannot be called on meta",
        "data-dependent",
        "data dependent",
        "nonzero",
        "unallocated storage",
    )
    return isinstance(mistake, NeedsValues) or any(part in text for part in known)


def _on_meta_only(mistake: Exception) -> bool:
    """Whether a run with real weights might go through where this one failed."""
    return isinstance(mistake, NotImplementedError) or "meta" in str(mistake).lower()


def _line(mistake: Exception) -> str:
    """The last line of the failing call that is neither torch's nor ours: the user's, most often."""
    ours, torchs = str(Path(__file__).parent), str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(mistake.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((ours, torchs, "<"))]
    if not theirs:
        return ""
    file = Path(theirs[-1].filename)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file.name
    return f", at {shown}:{theirs[-1].lineno}"
