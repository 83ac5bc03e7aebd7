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
from torch.nn.modules import module as module_globals
from torch.nn.utils import parametrize
from torch.utils import _python_dispatch as dispatch_globals

from pytest_modelbudget import plan, summarize
from tests.backends.torch.model.failing_models import (
    KEPT,
    PLACES,
    SPEC,
    WAYS,
    Functions,
    Mode,
    Model,
    in_forward,
    in_init,
)
from tests.project import WITHOUT_OTHERS


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
        *WITHOUT_OTHERS, "--model-budget", "-p", "no:cacheprovider", "-p", "no:randomly"
    )
    result.assert_outcomes(failed=2, passed=3)
    result.stdout.fnmatch_lines(["*BUILD ERROR*"])
