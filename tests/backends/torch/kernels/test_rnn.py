"""Recurrent layers as one kernel: against real runs on the CPU, and cuDNN's estimate against published sizes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.kernels.rnn import CUDNN, _CudnnSizes, rules
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.engine.run import run
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Inference, MemoryTrace, Recipe, Training
from tests.real_steps import KERNELS, allocated, inferred, sgd
from tests.versions import since

FLOAT = 4
STEPS, BATCH, WIDTH, STATE = 12, 4, 40, 64


def traced(model: nn.Module, shape: list[int], recipe: Recipe) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    return record_step(RunnableModel("model", meta_copy(model), parse(shape)), {}, recipe)  # type: ignore[arg-type]


class Reads(nn.Module):
    """A recurrent layer that is given its input, and its first states when asked; only the output goes on."""

    def __init__(self, layer: nn.Module, begins: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.begin = nn.Parameter(torch.zeros(1, 1, STATE)) if begins else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.begin is None:
            out: torch.Tensor = self.layer(x)[0]
            return out
        state = self.begin.expand(1, x.shape[1], -1).contiguous()
        hidden, last = self.layer(x, (state, state.clone()))
        return hidden + last[0]  # type: ignore[no-any-return]


def frozen(model: nn.Module) -> nn.Module:
    """The first layer's matrices are not trained."""
    model.layer.weight_ih_l0.requires_grad_(False)  # type: ignore[union-attr, operator]
    return model


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: Reads(nn.LSTM(WIDTH, STATE)),
    "LSTM, two layers, dropout": lambda: Reads(nn.LSTM(WIDTH, STATE, 2, dropout=0.5)),
    "LSTM, two directions": lambda: Reads(nn.LSTM(WIDTH, STATE, 2, bidirectional=True)),
    "LSTM, batch first": lambda: Reads(nn.LSTM(WIDTH, STATE, batch_first=True)),
    "LSTM without bias": lambda: Reads(nn.LSTM(WIDTH, STATE, bias=False)),
    "LSTM, wide": lambda: Reads(nn.LSTM(WIDTH, 256)),
    "LSTM, trained first states": lambda: Reads(nn.LSTM(WIDTH, STATE), begins=True),
    "LSTM, frozen matrix": lambda: frozen(Reads(nn.LSTM(WIDTH, STATE))),
    "LSTM, projections": lambda: Reads(nn.LSTM(WIDTH, STATE, 2, proj_size=16)),
    "LSTM, projections, two directions": lambda: Reads(nn.LSTM(WIDTH, STATE, proj_size=16, bidirectional=True)),
    "GRU": lambda: Reads(nn.GRU(WIDTH, STATE, 2, dropout=0.5)),
    "GRU, two directions, batch first": lambda: Reads(nn.GRU(WIDTH, STATE, bidirectional=True, batch_first=True)),
    "RNN": lambda: Reads(nn.RNN(WIDTH, STATE, 2, bias=False)),
    "RNN with ReLU": lambda: Reads(nn.RNN(WIDTH, STATE, nonlinearity="relu")),
}
FUSED = [name for name in LAYERS if name.startswith("LSTM") and "projections" not in name]
of_now = since("torch", "2.14", "before, what recurrent layers take on the CPU is not known, and said so")
known = pytest.mark.skipif(KERNELS is None, reason="oneDNN's sizes are known for AVX-512 and AVX2")


WIDE = (
    "LSTM", "LSTM, batch first", "LSTM, wide", "LSTM, frozen matrix", "LSTM, projections", "RNN with ReLU",
    "GRU, two directions, batch first",
)  # fmt: skip


def cases() -> list[Any]:
    """All layers; those that run as oneDNN's kernel only where its sizes are known."""
    return [
        pytest.param(name, marks=[known] * (name in FUSED) + [pytest.mark.slow] * (name in WIDE)) for name in LAYERS
    ]


@of_now
@pytest.mark.parametrize("name", cases())
def test_training_takes_what_a_real_step_takes(name: str) -> None:
    """The peak is that of torch's allocator: to the byte, but for a few hundred bytes of oneDNN's own."""
    model = LAYERS[name]()
    planned = traced(model, [STEPS, BATCH, WIDTH], Training(kernels=KERNELS or "cpu", optimizer="sgd")).peak()
    real = allocated(model, torch.rand(STEPS, BATCH, WIDTH), sgd)
    assert planned == pytest.approx(real, abs=256 if name in FUSED else 0)


@of_now
@pytest.mark.parametrize("name", cases())
def test_inference_takes_what_a_real_pass_takes(name: str) -> None:
    """Without gradients nothing is kept, and oneDNN orders the weights in blocks."""
    model = LAYERS[name]()
    planned = traced(model, [STEPS, BATCH, WIDTH], Inference(kernels=KERNELS or "cpu")).peak()
    real = inferred(model, torch.rand(STEPS, BATCH, WIDTH))
    assert planned == pytest.approx(real, abs=256 if name in FUSED else 0)


@pytest.mark.parametrize(
    ("kind", "reserve", "workspace", "gates"),
    [pytest.param("lstm", 736_000_000, 17_730_560, 4, id="LSTM"), pytest.param("gru", 864_000_000, 13_169_920, 3, id="GRU")],
)  # fmt: skip
def test_published_sizes_of_cudnn(kind: str, reserve: int, workspace: int, gates: int) -> None:
    """pytorch/pytorch issue 2895: 3,038,090 and 2,279,370 params are 4 layers of 320, 123 features and 10 classes."""
    layers, state, features, batch, steps = 4, 320, 123, 50, 500
    matrices = gates * state * (features + state + (layers - 1) * 2 * state)
    assert matrices + layers * 2 * gates * state + 10 * (state + 1) == {"lstm": 3_038_090, "gru": 2_279_370}[kind]
    stack = _CudnnSizes(kind, steps * batch, batch, state, layers, 1)
    assert stack.reserve * FLOAT == reserve
    assert (stack.taken + matrices) * FLOAT == workspace


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_on_cuda_all_layers_are_one_kernel(kind: str) -> None:
    """The reserve lives from the forward to the backward pass, the gradients of all weights are one storage."""
    layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](WIDTH, STATE, 2, batch_first=True)
    memory_trace = traced(Reads(layer), [BATCH, STEPS, WIDTH], Training(optimizer="none"))
    weights = sum(one.numel() for one in layer.parameters()) * FLOAT
    own = {"lstm": 5, "gru": 6, "rnn": 1}[kind]
    reserve = STEPS * BATCH * STATE * (2 * own + 1) * FLOAT
    sizes = [size for event in memory_trace.events if event.op == CUDNN for _, size in event.made]
    assert sizes.count(reserve) == 2  # one in each step
    gradients = [
        size
        for event in memory_trace.events
        for number, size in event.made
        if memory_trace.roles.get(number) == "gradient"
    ]
    assert gradients == [weights, weights]
    assert any(
        memory_trace.roles.get(number) == "workspace" for event in memory_trace.events for number, _ in event.made
    )


def test_on_cuda_inference_keeps_nothing() -> None:
    """Without training there is no reserve; output, states and workspace are all."""
    memory_trace = traced(Reads(nn.GRU(WIDTH, STATE)), [STEPS, BATCH, WIDTH], Inference())
    made = [
        size
        for event in memory_trace.events
        if event.op == CUDNN
        for number, size in event.made
        if number not in memory_trace.roles
    ]
    assert made == [STEPS * BATCH * STATE * FLOAT, BATCH * STATE * FLOAT, 0]


def test_shared_gradients_of_frozen_layers_are_not_made() -> None:
    """With all weights frozen and the input trained, cuDNN's gradient of the weights is left out."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Reads(nn.LSTM(WIDTH, STATE)))
    memory_trace = traced(model, [STEPS, BATCH, WIDTH], Training(optimizer="none", trainable=("0.*",)))
    weights = sum(one.numel() for one in model[1].parameters()) * FLOAT
    backward = [event for event in memory_trace.events if event.op == f"{CUDNN}_backward"]
    assert backward
    assert weights not in [size for event in backward for _, size in event.made]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_an_older_torch_says_that_it_is_not_known(
    kind: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels take other sizes: no peak is better than one that is half too low."""
    monkeypatch.setattr(compat, "KNOWN_RECURRENT", False)
    entry = ModelEntry(
        "net",
        build=lambda: kind(3, 4),
        inputs="float32[T, 2, 3]",
        dims={"T": 5},
        inference={"kernels": "cpu"},
        training={"kernels": "cpu"},
    )
    result = run(entry, Path(), snapshots=False)
    assert result.summary is not None, result.error
    assert [plan.peak_bytes for plan in result.summary.plans] == [None, None]
    assert all("known from torch 2.14 on" in plan.notes[0] for plan in result.summary.plans)


@of_now
@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed"])
def test_an_lstm_in_half_precision_has_no_plan_on_a_cpu(precision: str) -> None:
    """Its kernel takes what no rule knows: a step would be planned half too low."""
    with pytest.raises(ModelBudgetError, match="an LSTM in half precision takes on a CPU is not known"):
        traced(nn.LSTM(WIDTH, STATE), [STEPS, BATCH, WIDTH], Inference(precision=precision, kernels="cpu"))


def _saved(model: nn.Module, data: torch.Tensor, inside: AbstractContextManager[Any]) -> tuple[torch.dtype, int]:
    """The dtype of the output, and bytes of what the backward pass reads, each memory once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage())
        return tensor

    with inside, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(data)
    return out.dtype, sum(storage.nbytes() for storage in storages.values())


@of_now
@pytest.mark.parametrize("name", ["GRU", "GRU, two directions, batch first"])
def test_a_gru_under_autocast_on_a_cpu(name: str) -> None:
    """Autocast casts its products alone: the output and what is kept are those of torch's own autocast."""
    model, data = LAYERS[name]().eval(), torch.rand(STEPS, BATCH, WIDTH)
    real = _saved(model, data, torch.autocast("cpu", torch.bfloat16))
    kernels = DeviceKernels(cuda=False)
    kernels.add_rules(rules(Recorder(model), False, kernels))
    with kernels:
        assert _saved(meta_copy(model), data.to("meta"), kernels.autocast(torch.bfloat16)) == real
