"""What a recipe keeps on the host: real steps whose copies are not the allocator's, and sums by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from pytest_modelbudget import units
from pytest_modelbudget.backends.torch.distributed.rank import record_sharded
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Inference, MemoryTrace, Training
from tests.real_steps import held, measured


class Attention(nn.Module):
    """Saves views that are not contiguous, and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2), -1)
        out: torch.Tensor = self.out((scores @ v).transpose(1, 2).reshape(x.shape))
        return x + out


def traced(model: nn.Module, inputs: str, **recipe: Any) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    return record_step(RunnableModel("model", meta_copy(model), parse(inputs)), {}, Training(**recipe))


def test_activations_on_the_host() -> None:
    """The peak is that of a real step that copies what it saves out of the allocator, and back where it is needed."""
    model, data, alive = nn.Sequential(Attention(), nn.GELU(), Attention()), torch.rand(8, 32, 64), dict[str, Any]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    copied = 0

    def pack(tensor: torch.Tensor) -> Any:
        nonlocal copied
        copied += tensor.nbytes
        return np.array(tensor.detach().contiguous().numpy())

    def step() -> None:
        nonlocal copied
        copied = 0
        model.zero_grad()
        with saved_tensors_hooks(pack, lambda array: torch.from_numpy(array).clone()):
            alive["out"] = model(data)
        alive["out"].backward(torch.rand_like(alive["out"]))
        optimizer.step()

    trace = traced(model, "float32[8, 32, 64]", optimizer="sgd", kernels="cpu", offload=("activations",))
    sums_of_threads = 4 * 2 * 2 * 64  # layer norm's, which kernels take in themselves
    assert measured(step, 2) + held(model, data) - trace.peak() in (0, sums_of_threads)
    assert trace.notes == (f"offloaded: {copied / 2**20:.3f} MiB of activations are on the host",)


MATRIX, ROW = 4 * 128 * 128, 4 * 128


@pytest.mark.parametrize(
    ("offload", "matrices"),
    [
        pytest.param(("optimizer",), 4 * 2, id="optimizer: weights and gradients are left"),
        pytest.param(("gradients", "optimizer"), 4 + 1, id="with gradients: weights and one gradient"),
    ],
)
def test_an_optimizer_on_the_host(offload: tuple[str, ...], matrices: int) -> None:
    """Four matrices: Adam's states, then the gradients too, are on the host, where each has a copy and a gradient."""
    model = nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(4)))
    trace = traced(model, "float32[1, 128]", optimizer="adamw", foreach=False, offload=offload)
    assert trace.peak() == pytest.approx(matrices * MATRIX, abs=10 * ROW)
    assert trace.notes[-1].startswith("offloaded: 1.000 MiB of optimizer states and copies")


def test_paged_states_are_on_the_host() -> None:
    """Of 400 x 400 elements two copies in float32, two states of a byte, and scales and tables of those."""
    trace = traced(
        nn.Linear(400, 400, bias=False), "float32[1, 400]", optimizer="paged-adamw-8bit", offload=("optimizer",)
    )
    on_host = 2 * 4 * 160_000 + 2 * (160_000 + 4 * (160_000 // 256 + 256))
    assert trace.notes[-1].startswith(f"offloaded: {on_host / 2**20:.3f} MiB of optimizer states")


def test_nothing_large_is_on_the_host() -> None:
    """Parameters that all stay on the device leave nothing, which is a size that is known."""
    trace = traced(nn.Linear(4, 4), "float32[1, 4]", optimizer="adamw", offload=("optimizer",))
    assert trace.notes[-1].startswith("offloaded: 0 B of optimizer states")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        pytest.param({"offload": ("params",)}, "with sharding: {fsdp: ...}", id="params of one device"),
        pytest.param({"offload": ("gradients",)}, "write both", id="gradients alone"),
        pytest.param(
            {"offload": ("optimizer",), "in_backward": True}, "in the backward pass", id="in the backward pass"
        ),
        pytest.param(
            {"offload": ("gradients", "optimizer"), "gradient_accumulation": 2}, "not accumulated", id="accumulation"
        ),
    ],
)
def test_what_does_not_go_together(recipe: dict[str, Any], message: str) -> None:
    """One clear error."""
    with pytest.raises(ModelBudgetError) as caught:
        traced(nn.Linear(4, 4), "float32[1, 4]", **recipe)
    assert message in str(caught.value)


class Fresh(Mapping[str, torch.Tensor]):
    """Weights of a model, each a copy of its own whenever it is asked for: what a copy to a device allocates."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.state[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


@pytest.mark.parametrize("offload", [("*",), ("2", "1.qkv")], ids=["all weights", "modules by name"])
def test_weights_on_the_host(offload: tuple[str, ...]) -> None:
    """The peak is that of a real pass with the hooks of accelerate, whose copies are the allocator's here."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, data, alive = nn.Sequential(nn.Linear(64, 64), Attention(), nn.Linear(64, 512)), torch.rand(2, 8, 64), []
    recipe = Inference(kernels="cpu", offload=offload)
    trace = record_step(RunnableModel("model", meta_copy(model), parse("float32[2, 8, 64]")), {}, recipe)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    on_host = {"": True} if offload == ("*",) else {"": False, "2": True, "1.qkv": True}
    cpu = dict.fromkeys(on_host, torch.device("cpu"))
    hooks.attach_align_device_hook_on_blocks(model, cpu, on_host, Fresh(model))
    left = sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta)

    def run() -> None:
        alive.clear()
        with torch.no_grad():
            alive.append(model(data))

    run()
    alive.clear()
    sums_of_threads = 4 * 2 * 2 * 64
    assert measured(run, 1) + left + data.nbytes - trace.peak() in (0, sums_of_threads)
    assert trace.notes == (f"offloaded: {units.size(whole - left)} of parameters are on the host",)


class Twice(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Parameter(torch.zeros(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.first @ self.second


def test_a_weight_with_two_names_comes_from_the_host_once() -> None:
    """The peak is the weight, the input and two products."""
    runnable = RunnableModel("model", meta_copy(nn.Sequential(Twice())), parse("float32[8, 64]"))
    assert record_step(runnable, {}, Inference(offload=("*",))).peak() == 4 * (64 * 64 + 3 * 8 * 64)


class Reading(nn.Module):
    """Its head is the table of another module, as it stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(8, 4), nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.body(self.table(ids)) @ self.table.weight.T


def test_a_weight_that_others_read_where_it_stands() -> None:
    """While its module does not run it is nowhere on the device: accelerate's result has no values."""
    runnable = RunnableModel("model", meta_copy(Reading()), parse("int64[2]"))
    with pytest.raises(ModelBudgetError, match=r"offload: \(root\) reads table.weight without calling the module"):
        record_step(runnable, {}, Inference(offload=("table",)))
    assert record_step(runnable, {}, Inference(offload=("body",))).peak() > 0


@pytest.mark.parametrize("module", [nn.LSTM(4, 4), nn.MultiheadAttention(4, 1)], ids=["LSTM", "attention"])
def test_modules_that_read_weights_past_the_hooks(module: nn.Module) -> None:
    """accelerate leaves the weights of one on the CPU and finds none of the other's: there is no such run to plan."""
    runnable = RunnableModel("model", meta_copy(nn.Sequential(module)), parse("float32[1, 4]"))
    with pytest.raises(ModelBudgetError, match=r"inference.offload: 0 .* name other modules"):
        record_step(runnable, {}, Inference(offload=("*",)))


def test_modules_that_are_not_there() -> None:
    """One clear error, as for what outlives the copies."""
    runnable = RunnableModel("model", meta_copy(nn.Linear(4, 4)), parse("float32[1, 4]"))
    for recipe, said in (
        ({"offload": ("layers.*",)}, "no module's name matches"),
        ({"precision": "bf16-mixed"}, "autocast"),
    ):
        with pytest.raises(ModelBudgetError, match=said):
            record_step(runnable, {}, Inference(**{"offload": ("*",), **recipe}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "weights"),
    [
        pytest.param("fp32", 1 + 1 + 0.5, id="gradient, what is sent of it, and what arrives"),
        pytest.param("bf16-mixed", 0.5 + 1 + 0.5, id="the gradient in half precision"),
    ],
)
def test_shards_on_the_host(precision: Any, weights: float) -> None:
    """On one of two ranks neither shards, nor their gradients, nor Adam's states are on the device between collectives."""
    sharding = {"fsdp": 2, **({"casts": "policy"} if precision != "fp32" else {})}
    recipe = Training(sharding=sharding, precision=precision, offload=("params",))
    runnable = RunnableModel("model", meta_copy(nn.Linear(512, 512, bias=False)), parse("float32[1, 512]"))
    trace, weight = record_sharded(runnable, {}, recipe).memory_trace, 4 * 512 * 512
    assert trace.peak() == pytest.approx(weights * weight, abs=6 * 4 * 512)
    assert trace.held_bytes("param") == 0
    assert trace.notes == ("offloaded: 2.000 MiB of parameters, gradients and optimizer are on the host",)


def test_gradients_that_are_never_let_go_of_are_on_the_host_too() -> None:
    """What is filled with zeros is made in the first step alone: half of a weight, of its gradient, and of two states."""
    recipe = Training(sharding={"fsdp": 2}, zero_grad="never", offload=("params",))
    runnable = RunnableModel("model", meta_copy(nn.Linear(512, 512, bias=False)), parse("float32[1, 512]"))
    trace = record_sharded(runnable, {}, recipe).memory_trace
    assert trace.notes == ("offloaded: 2.000 MiB of parameters, gradients and optimizer are on the host",)
