"""Building and counting leave the process, and a user's model, exactly as they were."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn.modules import module as globals_of_modules

from pytest_modelbudget.backends.torch import abstract, global_state_restored
from pytest_modelbudget.summary import Summary


class Busy(nn.Module):
    """A model that does to itself, in forward, what it should not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("steps", torch.zeros(1))
        self.seen = 0
        self.cache: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.cache["last"] = x
        self.steps += 1
        x = self.drop(self.norm(self.conv(x))).mean((2, 3))
        x = self.head(x)[:, None]
        return self.attention(x, x, x)[0] + torch.rand(1)


def _state(model: nn.Module) -> dict[str, Any]:
    """All that could change, as plain data."""
    return {
        "bytes": {
            name: (id(tensor), bytes(tensor.detach().numpy()))
            for name, tensor in model.state_dict(keep_vars=True).items()
        },
        "grads": [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        "flags": [(module.training, type(module), sorted(vars(module))) for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ],
        "own": (model.seen, dict(model.cache)),
    }


def _process() -> dict[str, Any]:
    """All global state that building or running a model may move."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),  # type: ignore[index, union-attr]
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "call": nn.Module.__call__,
        "init": torch.nn.init.normal_,
        "layers": [nn.Linear.reset_parameters, nn.Conv2d.reset_parameters, nn.BatchNorm2d.reset_parameters],
        "fast": torch.backends.mha.get_fastpath_enabled(),
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "hooks": {name: len(hooks) for name, hooks in vars(globals_of_modules).items() if isinstance(hooks, dict)},
        "modes": torch._C._len_torch_function_stack(),
    }


def test_a_users_model_is_left_untouched(count_live: Callable[..., Summary]) -> None:
    """Weights, buffers, BatchNorm statistics, flags, hooks, attributes and all random states are as before."""
    model = Busy().train()
    model.conv.requires_grad_(False)
    model.norm.eval()
    model.head.register_forward_hook(lambda module, args, out: out * 2)
    model_before, process_before = _state(model), _process()
    summary = count_live(model, "float32[B, 3, 8, 8]", B=2)
    assert summary.params == sum(parameter.numel() for parameter in model.parameters())
    assert _state(model) == model_before
    assert _process() == process_before


def test_what_cannot_be_copied_is_shared(count_live: Callable[..., Summary]) -> None:
    """A generator among the attributes does not keep a model from being counted, nor is the model touched."""
    model = Busy()
    model.source = (number for number in range(3))  # type: ignore[assignment]
    before = _state(model)
    assert count_live(model, "float32[B, 3, 8, 8]", B=2).outputs[0].shape == ("B", 1, 4)
    assert _state(model) == before


def test_counting_again_gives_the_same(count_live: Callable[..., Summary]) -> None:
    """The first and the third summary, in training and in eval mode, with and without gradients, are equal."""
    model = Busy()
    first = count_live(model.train(), "float32[B, 3, 8, 8]", B=2)
    with torch.no_grad():
        assert count_live(model.eval(), "float32[B, 3, 8, 8]", B=2) == first
    assert count_live(model, "float32[B, 3, 8, 8]", B=2) == first


def test_built_and_live_models_count_the_same(
    count: Callable[..., Summary], count_live: Callable[..., Summary]
) -> None:
    """It does not matter whether the plugin built the model or the user did."""
    assert count(Busy, "float32[B, 3, 8, 8]", B=2) == count_live(Busy(), "float32[B, 3, 8, 8]", B=2)


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_building_restores_the_process(fails: bool) -> None:
    """Random states, default dtype and device, grad mode, hooks and patches are as before, also after an error."""
    before = _process()
    try:
        with global_state_restored(), abstract(), global_state_restored(), abstract():
            nn.Linear(2000, 2000)
            torch.rand(3), random.random(), numpy.random.rand()
            torch.manual_seed(1)
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("meta")
            torch.set_grad_enabled(False)
            if fails:
                raise LookupError("the builder's own")
    except LookupError:
        assert fails
    assert _process() == before


def test_small_values_can_be_read_while_building() -> None:
    """Constructors read schedules and widths; parameters are on meta whatever their size."""
    with global_state_restored(), abstract():
        assert [round(rate.item(), 1) for rate in torch.linspace(0, 0.4, 5)] == [0.0, 0.1, 0.2, 0.3, 0.4]
        assert torch.arange(4).tolist() == [0, 1, 2, 3]
        layer = nn.Linear(2, 2)
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_real_and_meta_tensors_may_meet_while_building() -> None:
    """A large table is on meta and a small one is real: joining them gives a table on meta."""
    with global_state_restored(), abstract():
        joined = torch.cat([torch.zeros(1000, 100), torch.ones(1, 100)])
    assert joined.is_meta
    assert joined.shape == (1001, 100)


@pytest.mark.parametrize(
    "fill",
    [
        getattr(nn.init, name)
        for name in ("kaiming_uniform_", "xavier_normal_", "orthogonal_", "trunc_normal_", "sparse_")
    ],
    ids=lambda fill: fill.__name__,
)
def test_init_functions_imported_by_name_are_idle(fill: Callable[..., Any]) -> None:
    """A name bound before building began bypasses the patch, and still neither allocates nor fails."""
    with global_state_restored(), abstract():
        layer = nn.Linear(64, 64)
        fill(layer.weight, **({"sparsity": 0.5} if fill.__name__ == "sparse_" else {}))
    assert layer.weight.is_meta


def test_what_layers_make_for_themselves_is_on_meta() -> None:
    """Small weights and statistics of torch's layers have no values; counts have, and tensors that a user makes."""
    with global_state_restored(), abstract():
        layer, made = nn.BatchNorm1d(3), torch.ones(3)
    assert {name for name, tensor in layer.state_dict().items() if not tensor.is_meta} == {"num_batches_tracked"}
    assert [tuple(tensor.shape) for tensor in layer.state_dict().values()] == [(3,), (3,), (3,), (3,), ()]
    assert layer.num_batches_tracked.item() == 0
    assert made.tolist() == [1, 1, 1]


def test_a_layers_own_way_to_fill_its_weights_runs() -> None:
    """Only what torch's layers do there is left out; a real tensor in a layer of torch's is filled as ever."""

    class Own(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            self.seen = tuple(self.weight.shape)

    real = nn.Linear(2, 2)
    with global_state_restored(), abstract():
        assert Own(3, 4).seen == (4, 3)
        nn.init.constant_(real.weight, 7.0)
        real.reset_parameters()
    assert not real.weight.is_meta
    assert (real.weight.abs() < 1).all()


def test_no_module_outlives_a_summary(count: Callable[..., Summary]) -> None:
    """A summary is plain data: the model is freed with its last user reference, without the help of the collector."""
    built = []

    def build() -> nn.Module:
        model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(4)))
        built.append(weakref.ref(model))
        return model

    gc.collect()
    gc.disable()
    try:
        assert count(build, "float32[B, 3]", B=1).params == 48
        assert built[0]() is None
    finally:
        gc.enable()


class Property(nn.Module):
    """Its training flag is a property."""

    @property
    def training(self) -> bool:
        return self.__dict__["mode"] == "train"

    @training.setter
    def training(self, flag: bool) -> None:
        self.__dict__["mode"] = "train" if flag else "eval"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else x[:, :2]


class Mirrored(nn.Module):
    """Keeps more than the flag when its flag is set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":
            super().__setattr__("mode", "train" if value else "eval")
        super().__setattr__(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.mode == "train" else x[:, :2]


@pytest.mark.parametrize("kind", [Property, Mirrored])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_flags_are_set_as_the_model_sets_them(
    kind: type[nn.Module], training: bool, count_live: Callable[..., Summary]
) -> None:
    """Shapes are those of eval mode, and the flag is the user's again, where setting it does more than to store it."""
    model = kind().train(training)
    before = dict(vars(model))
    assert count_live(model, "float32[B, 3]", B=1).outputs[0].shape == ("B", 2)
    assert model.training is training
    assert vars(model) == before


LLAMA = """
import resource, torch
from torch import nn
from pytest_modelbudget.backends import torch as backend
from pytest_modelbudget.inputs import parse

class Block(nn.Module):
    def __init__(self, width, hidden, heads, groups):
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)
    def forward(self, x):
        y, (b, t, _) = self.norm1(x), x.shape
        q, k, v = (p(y).view(b, t, -1, self.size).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))

def build():
    return nn.Sequential(nn.Embedding(128256, 16384), *(Block(16384, 53248, 128, 8) for _ in range(126)),
                         nn.RMSNorm(16384), nn.Linear(16384, 128256, bias=False))

def count(build, tokens):
    with backend.global_state_restored(), backend.abstract():
        model = build()
    return backend.summarize(model, name="m", inputs=parse("int64[B, T]"), sizes={"B": 1, "T": tokens}, built_here=True)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

count(lambda: nn.Sequential(nn.Embedding(50, 64), Block(64, 64, 4, 2)), 8)
before = peak()
summary = count(build, 2048)
print(summary.params, summary.flops.value, (peak() - before) // 1024)
"""


@pytest.mark.slow
def test_a_model_of_400_billion_params_takes_no_memory() -> None:
    """Llama 3.1 405B: its published 405,853,388,800 params, FLOPs by the closed formula, under 300 MB more."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(LLAMA)], capture_output=True, text=True, check=True)
    params, flops, megabytes = map(int, done.stdout.split())
    assert params == 405_853_388_800
    in_products = 405_853_388_800 - 128256 * 16384 - 253 * 16384  # all but the embedding and the norms
    assert flops == 2 * in_products * 2048 + 126 * 4 * 2048**2 * 16384
    assert megabytes < 300
