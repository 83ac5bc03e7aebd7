"""Whatever fails while a model is built, counted or planned, the process is afterwards as it was before."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
import torch._dynamo  # under a low limit of recursion it could be imported halfway only
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_globals
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch as dispatch_globals
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget import plan, summarize
from pytest_modelbudget.backends.torch import compat
from tests.project import WITHOUT_HYPOTHESIS

SPEC = "float32[B, 8]"
KEPT: list[Any] = []
"""What a model keeps outside of itself, and thereby alive."""


def state() -> dict[str, Any]:
    """All that code can set for the code after it, read without any help of the project."""
    c, flags = torch._C, torch.backends
    return {
        "dispatch modes": [c._get_dispatch_stack_at(place) for place in range(c._len_torch_dispatch_stack())],
        "pre-dispatch modes": torch._ops._len_torch_dispatch_stack_pre_dispatch(),
        "function modes": [c._get_function_stack_at(place) for place in range(c._len_torch_function_stack())],
        "function overrides": str(c._get_torch_function_state()) if hasattr(c, "_get_torch_function_state") else "",
        "dispatch keys": (str(c._dispatch_tls_local_include_set()), str(c._dispatch_tls_local_exclude_set())),
        "in modes": {name: value for name, value in vars(dispatch_globals).items() if name.startswith("_is_in_")},
        "functorch": c._functorch.get_dynamic_layer_stack_depth(),
        "dual level": forward_ad._current_level,
        "tracing": c._get_tracing_state(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), c._is_fwd_grad_enabled()),
        "multithreading": c._is_multithreading_enabled(),
        "saving": (
            c._autograd._top_saved_tensors_default_hooks(True)
            if hasattr(c._autograd, "_top_saved_tensors_default_hooks")
            else None,
            c._autograd._saved_tensors_hooks_get_disabled_error_message(),
        ),
        "autocast": [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in ("cpu", "cuda")],
        "autocast cache": (torch.is_autocast_cache_enabled(), _nesting()),
        "dtype": torch.get_default_dtype(),
        "device": (torch.get_default_device(), str(torch.empty(1).device), torch.utils._device.CURRENT_DEVICE),
        "hooks": {name: dict(value) for name, value in vars(module_globals).items() if isinstance(value, dict)},
        "full hooks": module_globals._global_is_full_backward_hook,
        "patched": [getattr(owner, name) for owner, name in PATCHED],
        "tensor": dict(vars(torch.Tensor)),
        "functional": {name: value for name, value in vars(functional).items() if callable(value)},
        "init": {name: value for name, value in vars(nn.init).items() if callable(value)},
        "layers": [layer.reset_parameters for layer in (nn.Linear, nn.LSTM, nn.BatchNorm2d, nn.Embedding)],
        "attention": [
            flags.mha.get_fastpath_enabled(),
            flags.cuda.flash_sdp_enabled(),
            flags.cuda.math_sdp_enabled(),
            flags.cuda.mem_efficient_sdp_enabled(),
            flags.cuda.cudnn_sdp_enabled(),
        ],
        "kernels": [flags.mkldnn.enabled, flags.cudnn.enabled, flags.cudnn.benchmark, flags.cudnn.deterministic],
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "anomalies": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "threads": torch.get_num_threads(),
        "cached weights": parametrize._cache_enabled,
        "conversion": torch.__future__.get_swap_module_params_on_conversion(),
        "checked distributions": torch.distributions.Distribution._validate_args,
        "group": torch.distributed.is_initialized(),
        "stance": str(getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", "")),
        "random": (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),  # type: ignore[index, union-attr]
        "warnings": (list(warnings.filters), warnings.showwarning),
        "collector": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
        "imports": list(sys.meta_path),
        "excepthook": sys.excepthook,
    }


PATCHED = [
    (nn.Module, "__call__"),
    (nn.Module, "register_parameter"),
    (torch, "einsum"),
    (torch, "empty"),
    (torch.autocast, "__init__"),
    (torch.UntypedStorage, "resize_"),
    (nn.utils.parametrizations, "_is_orthogonal"),
]


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


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


CASES = sorted(
    {(way, place) for way in WAYS for place in ("builder", "forward")}
    | {
        (way, place)
        for place in PLACES
        for way in ("value error", "ctrl-c", "endless modes", "mode entered", "generator")
    }
    | {(way, place) for place in PLACES for way in ("inference kept", "device set", "hook set")}
)
"""Some 200 models that fail: how, and where."""

DEAR = {("endless summaries", "forward"), ("endless attention", "forward")}
"""These take seconds; in a builder they do not."""


@contextlib.contextmanager
def little_room() -> Iterator[None]:
    """Recursion ends soon, so that endless ones take little time."""
    before, depth, frame = sys.getrecursionlimit(), 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + 160)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def differences(call: Callable[[], object]) -> list[str]:
    """What is not as it was before a call that may fail."""
    before = state()
    with contextlib.suppress(BaseException):
        call()
    KEPT.clear()
    after = state()
    return [f"{name}: {value} -> {after[name]}"[:300] for name, value in before.items() if after[name] != value]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("way", "place"),
    [pytest.param(*case, id=" in ".join(case), marks=pytest.mark.slow if case in DEAR else ()) for case in CASES],
)
def test_a_failing_model_leaves_nothing_behind(way: str, place: str) -> None:
    """From a builder and live, counted and planned, the process is as before, and so is what a user builds in it."""

    def build() -> nn.Module:
        return PLACES[place](WAYS[way])

    with little_room():
        assert differences(lambda: summarize(build, SPEC, name="m")) == []
        if place in ("training", "backward") or (place == "forward" and not way.startswith("endless")):
            assert differences(lambda: plan(build, SPEC, name="m")) == []
        if place not in ("builder", "init", "parametrization"):
            model = build()
            assert differences(lambda: summarize(model, SPEC, name="m")) == []
    assert nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("call", [summarize, plan])
def test_whoever_calls_near_the_limit_of_recursion_gets_out_again(call: Callable[..., Any]) -> None:
    """With any number of frames left the call returns or fails, and leaves nothing behind."""

    def called() -> None:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit - less)
        try:
            call(Model, SPEC, name="m")
        finally:
            sys.setrecursionlimit(limit)

    for room in range(20, 150, 3):
        less = 160 - room
        with little_room():
            assert differences(called) == []


def test_what_a_builder_sets_ends_with_its_model() -> None:
    """A builder's default dtype holds while its model is counted, and no longer."""

    def build() -> nn.Module:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.manual_seed(3)
        warnings.simplefilter("ignore")
        return nn.Linear(8, 4)

    assert differences(lambda: summarize(build, SPEC)) == []
    assert summarize(build, SPEC).weight_bytes == 36 * 8


def test_what_was_on_before_stays_on() -> None:
    """A user's own modes, hooks, autocast and default device are as they were, inside and after a failed call."""
    theirs = (Mode(), Functions(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        for context in (*theirs, torch.autograd.graph.save_on_cpu()):
            stack.enter_context(context)
        for way in sorted(
            WAYS.keys() & {"value error", "endless modes", "mode entered", "autocast set", "saving hooks entered"}
        ):
            with little_room():
                assert differences(lambda way=way: summarize(lambda: in_forward(WAYS[way]), SPEC)) == []  # type: ignore[misc]
    with torch.inference_mode():
        assert differences(lambda: summarize(lambda: in_forward(WAYS["inference kept"]), SPEC)) == []
        assert torch.is_inference_mode_enabled()


@pytest.mark.slow
def test_threads_take_turns() -> None:
    """Threads that count and fail at once get the numbers that each gets alone, and leave nothing behind."""
    expected = summarize(nn.TransformerEncoderLayer(8, 2, 16), "float32[B, 5, 8]", name="m").to_dict()
    ways = ("value error", "dtype set", "kernels set", "mode entered", "collector set", "fast path set")
    wrong: list[object] = []

    def work() -> None:
        for way in ways:
            with contextlib.suppress(Exception):
                summarize(lambda way=way: in_forward(WAYS[way]), SPEC)  # type: ignore[misc]
            with contextlib.suppress(Exception):
                plan(lambda way=way: in_init(WAYS[way]), SPEC)  # type: ignore[misc]
            count = summarize(lambda: nn.TransformerEncoderLayer(8, 2, 16), "float32[B, 5, 8]", name="m").to_dict()
            wrong.extend(name for name, value in expected.items() if count[name] != value)

    def run() -> None:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            wrong.extend([] if nn.Linear(3, 3).weight.device.type == "cpu" else ["a layer of another thread"])
        for thread in threads:
            thread.join()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        found = differences(run)
    finally:
        sys.setswitchinterval(interval)
    assert [name for name in found if not name.startswith("random")] == []  # this thread drew some meanwhile
    assert wrong == []


PROJECT = """
import torch
from torch import nn
from pytest_modelbudget import model

torch.manual_seed(5)  # before the models are built

class Endless(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 4)

    def forward(self, x):
        def again(x):
            with torch.no_grad(), torch.autocast("cpu"):
                return again(self.lin(x).relu() @ self.lin.weight)
        return again(x)

@model(inputs="float32[B, 8]")
def endless():
    return Endless()

@model(inputs="float32[B, 8]")
def moving():
    torch.manual_seed(7)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    nn.modules.module.register_module_forward_hook(lambda *_: 1 / 0)
    raise SystemExit(3)

def test_numbers_are_those_of_a_fresh_process():
    assert torch.randn(3).tolist() == NUMBERS

def test_a_model_trains_and_its_hooks_run():
    layer, seen = nn.Linear(2, 2), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    before = layer.weight.tolist()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert seen == [1] and layer.weight.tolist() != before
    assert (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)

def test_layers_are_filled():
    assert float(nn.init.ones_(torch.empty(3)).sum()) == 3
    assert nn.Linear(2, 2).bias.abs().sum() > 0
"""


@pytest.mark.slow
def test_a_users_own_tests_pass_after_models_that_fail(pytester: pytest.Pytester) -> None:
    """In one run of pytest the failing models fail, and the tests after them see a fresh process."""
    numbers = torch.randn(3, generator=torch.Generator().manual_seed(5)).tolist()
    pytester.makepyfile(test_models=PROJECT.replace("NUMBERS", str(numbers)))
    result = pytester.runpytest_subprocess(
        *WITHOUT_HYPOTHESIS, "--model-budget", "-p", "no:cacheprovider", "-p", "no:randomly"
    )
    result.assert_outcomes(failed=2, passed=3)
    result.stdout.fnmatch_lines(["*BUILD ERROR*"])
