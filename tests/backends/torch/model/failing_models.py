"""Models that fail, or change what all share: in which `WAYS`, and at which `PLACES` of their life."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
import torch._dynamo  # under a low limit of recursion it could be imported halfway only
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_globals
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.torch import compat

SPEC = "float32[B, 8]"
KEPT: list[Any] = []
"""What a model keeps outside of itself, and thereby alive."""


class Mode(TorchDispatchMode):
    """A user's own mode, which changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """A user's own mode, which changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Unprintable(Exception):
    """It cannot even be told."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


class Falling:
    """Raises when it is let go of."""

    def __del__(self) -> None:
        raise ValueError("while it was deleted")


def raising(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def endless(around: Callable[[], Any], step: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """Recursion without end: each level is inside a context of its own, and all of them fail to leave it."""

    def again() -> None:
        with around():
            step()
            again()

    return again


def mutual() -> None:
    one, other = nn.Module(), nn.Module()
    one.forward = lambda: other()  # type: ignore[method-assign]
    other.forward = lambda: one()  # type: ignore[method-assign]
    one()


class Asking:
    @property
    def value(self) -> Any:
        return self.value


def entering(make: Callable[[], Any], keep: bool = False) -> Callable[[], None]:
    """A context is entered and never left, and then something else fails; the error, or more, keeps the context."""

    def fail() -> None:
        context = make()
        context.__enter__()
        if keep:
            KEPT.append(context)
        raise ValueError("after it was entered")

    return fail


def setting(change: Callable[[], object]) -> Callable[[], None]:
    def fail() -> None:
        change()
        raise ValueError("after it was set")

    return fail


@contextlib.contextmanager
def hooks_refused() -> Iterator[None]:
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        yield


def generator_left() -> None:
    """A generator waits inside a context of its own, and goes when the error is forgotten."""

    def numbers() -> Iterator[int]:
        with torch.no_grad(), torch.device("meta"), Mode():
            yield 1
            yield 2

    waiting = numbers()
    next(waiting)
    raise ValueError("while it waits")


def everything_moves() -> None:
    torch.manual_seed(1), random.seed(1), numpy.random.seed(1)
    torch.rand(3), random.random(), numpy.random.rand()
    raise ValueError("after it was seeded")


def inner_summary() -> None:
    summarize(lambda: nn.Linear(3, 3), "float32[B, 4]", name="inner")


def grads_in_vmap() -> None:
    def again(x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(again)(x.unsqueeze(0))

    again(torch.ones(2, 2))


def noisy() -> None:
    Falling()
    raise ValueError("after it was deleted")


def in_checkpoints() -> None:
    def again(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(again, x * 2, use_reentrant=False)  # type: ignore[no-any-return]

    again(torch.ones(2, requires_grad=True))


def attending() -> None:
    layer = nn.MultiheadAttention(8, 2)

    def again(x: torch.Tensor) -> torch.Tensor:
        return again(layer(x, x, x)[0])

    again(torch.ones(2, 2, 8))


WAYS: dict[str, Callable[[], None]] = {
    "value error": raising(ValueError("no")),
    "no memory": raising(MemoryError()),
    "no device memory": raising(torch.OutOfMemoryError("no")),
    "ctrl-c": raising(KeyboardInterrupt()),
    "exit": raising(SystemExit(3)),
    "generator exit": raising(GeneratorExit()),
    "stop": raising(StopIteration()),
    "unprintable": raising(Unprintable()),
    "cannot be made": raising(UnicodeDecodeError),
    "endless": endless(contextlib.nullcontext),
    "endless operators": endless(contextlib.nullcontext, lambda: torch.ones(2) + 1),
    "endless layers": endless(contextlib.nullcontext, lambda: nn.Linear(2, 2)(torch.ones(2))),
    "endless modes": endless(Mode, lambda: torch.ones(2) + 1),
    "endless function modes": endless(Functions, lambda: torch.ones(2) + 1),
    "endless devices": endless(lambda: torch.device("meta")),
    "endless no_grad": endless(torch.no_grad),
    "endless inference": endless(torch.inference_mode),
    "endless autocast": endless(lambda: torch.autocast("cpu", torch.bfloat16)),
    "endless cached weights": endless(parametrize.cached),
    "endless saving hooks": endless(lambda: torch.autograd.graph.save_on_cpu()),
    "endless kernels": endless(lambda: sdpa_kernel(SDPBackend.MATH)),
    "endless warnings": endless(warnings.catch_warnings, lambda: warnings.simplefilter("ignore")),
    "endless dual levels": endless(forward_ad.dual_level),
    "endless attention": attending,
    "endless checkpoints": in_checkpoints,
    "endless vmap": grads_in_vmap,
    "mutual": mutual,
    "property": lambda: Asking().value,
    "inside a summary": inner_summary,
    "endless summaries": lambda: summarize(WAYS["endless summaries"], SPEC) and None,
    "deleted": noisy,
    "generator": generator_left,
    "mode entered": entering(Mode),
    "function mode entered": entering(Functions),
    "device entered": entering(lambda: torch.device("meta")),
    "no_grad entered": entering(torch.no_grad),
    "inference entered": entering(torch.inference_mode),
    "inference kept": entering(torch.inference_mode, keep=True),
    "autocast entered": entering(lambda: torch.autocast("cpu", torch.bfloat16)),
    "saving hooks entered": entering(torch.autograd.graph.save_on_cpu),
    "saving refused": entering(hooks_refused),
    "kernels entered": entering(lambda: sdpa_kernel(SDPBackend.MATH)),
    "cached weights entered": entering(parametrize.cached),
    "dual level entered": entering(forward_ad.dual_level),
    "anomalies entered": entering(torch.autograd.detect_anomaly),
    "functions off": entering(torch._C.DisableTorchFunction),
    "warnings entered": entering(warnings.catch_warnings),
    "dtype set": setting(lambda: torch.set_default_dtype(torch.float64)),
    "tensor type set": setting(lambda: torch.set_default_tensor_type(torch.DoubleTensor)),
    "device set": setting(lambda: torch.set_default_device("meta")),
    "grad set": setting(lambda: torch.set_grad_enabled(False)),
    "autocast set": setting(lambda: torch.set_autocast_enabled("cpu", True)),
    "hook set": setting(lambda: module_globals.register_module_forward_hook(lambda *_: None)),
    "parameter hook set": setting(lambda: module_globals.register_module_parameter_registration_hook(lambda *_: None)),
    "deterministic set": setting(lambda: torch.use_deterministic_algorithms(True, warn_only=True)),
    "filling set": setting(lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)),
    "threads set": setting(lambda: torch.set_num_threads(1)),
    "kernels set": setting(lambda: torch.backends.cuda.enable_flash_sdp(False)),
    "fast path set": setting(lambda: torch.backends.mha.set_fastpath_enabled(False)),
    "benchmark set": setting(lambda: setattr(torch.backends.cudnn, "benchmark", True)),
    "precision set": setting(lambda: torch.set_float32_matmul_precision("medium")),
    "conversion set": setting(lambda: torch.__future__.set_swap_module_params_on_conversion(True)),
    "checks set": setting(lambda: torch.distributions.Distribution.set_default_validate_args(False)),
    "warnings set": setting(lambda: warnings.simplefilter("error")),
    "collector set": setting(gc.disable),
    "recursion set": setting(lambda: sys.setrecursionlimit(3000)),
    "random set": everything_moves,
}

if not compat.KNOWS_SAVING_HOOKS:  # torch before 2.14 does not tell which hooks are set, so they are not put back
    for untold in ("endless saving hooks", "saving hooks entered"):
        del WAYS[untold]


class Model(nn.Module):
    """A small model that calls `fail` at one place of its life."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x).relu()


def in_builder(fail: Callable[[], None]) -> nn.Module:
    model = Model()
    fail()
    return model


def in_init(fail: Callable[[], None]) -> nn.Module:
    class Broken(Model):
        def __init__(self) -> None:
            super().__init__()
            fail()

    return Broken()


def in_forward(fail: Callable[[], None]) -> nn.Module:
    class Broken(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fail()
            return super().forward(x)

    return Broken()


def in_depth(fail: Callable[[], None]) -> nn.Module:
    model = in_forward(fail)
    for _ in range(30):
        model = nn.Sequential(nn.Identity(), model)
    return model


def in_pre_hook(fail: Callable[[], None]) -> nn.Module:
    model = Model()
    model.lin.register_forward_pre_hook(lambda *_: fail())
    return model


def in_training(fail: Callable[[], None]) -> nn.Module:
    class Broken(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                fail()
            return super().forward(x)

    return Broken()


def in_backward(fail: Callable[[], None]) -> nn.Module:
    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            fail()
            return gradients[0]

    class Broken(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Step.apply(super().forward(x))  # type: ignore[no-any-return]

    return Broken()


def in_parametrization(fail: Callable[[], None]) -> nn.Module:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 2:
                fail()
            return weight * 2

    model = Model()
    parametrize.register_parametrization(model.lin, "weight", Broken())
    return model


def in_lazy_layer(fail: Callable[[], None]) -> nn.Module:
    class Broken(nn.LazyLinear):
        def initialize_parameters(self, input: torch.Tensor) -> None:  # type: ignore[override]
            fail()

    return nn.Sequential(Broken(4))


def in_tensor_class(fail: Callable[[], None]) -> nn.Module:
    class Broken(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.mul:
                fail()
            return super().__torch_function__(func, types, args, kwargs or {})

    class Using(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.as_subclass(Broken).mul(2))

    return Using()


def in_mode(fail: Callable[[], None]) -> nn.Module:
    class Broken(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "relu" in str(func):
                fail()
            return func(*args, **(kwargs or {}))

    class Using(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with Broken(), torch.no_grad():
                return super().forward(x)

    return Using()


def in_copy(fail: Callable[[], None]) -> nn.Module:
    class Broken(Model):
        def __deepcopy__(self, memo: Any) -> Any:
            fail()

    return Broken()


PLACES: dict[str, Callable[[Callable[[], None]], nn.Module]] = {
    "builder": in_builder,
    "init": in_init,
    "forward": in_forward,
    "depth": in_depth,
    "hook": in_pre_hook,
    "training": in_training,
    "backward": in_backward,
    "parametrization": in_parametrization,
    "lazy layer": in_lazy_layer,
    "tensor class": in_tensor_class,
    "mode": in_mode,
    "copy": in_copy,
}
