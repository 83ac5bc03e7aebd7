"""The memory trace of a pass: counted by hand, against real storages one by one, and against torch's own memory profiler."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_modelbudget.backends.torch.kernels.attention import cpu_attention
from pytest_modelbudget.backends.torch.memory import recorder as recorder_module
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.meta.dispatch import MetaDispatcher, RealDispatcher
from pytest_modelbudget.backends.torch.model.global_state import global_state_restored, seed_everything
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, call_of, quiet_modes
from pytest_modelbudget.backends.torch.trace.observer import observing
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace

FLOAT = 4


def record(runnable: RunnableModel, *, backward: bool) -> MemoryTrace:
    """The memory trace of one pass: in eval mode without gradients, or with `backward` in training mode, and back.

    The backward pass begins with one gradient for each tensor of floats that the model returns; there is no loss and
    no optimizer. Gradients of parameters stay alive to the end.
    """
    call, recorder = call_of(runnable, {}), Recorder(runnable.model)
    for name, tensor in call.ports:
        recorder.label(tensor, name)
    runner = (RealDispatcher if runnable.real else MetaDispatcher)(runnable.meta_cache, call.readings)
    with torch.inference_mode(False), global_state_restored(), cpu_attention():
        seed_everything()
        with quiet_modes(runnable, training=backward), observing(recorder, runner):
            out = runnable.model(*call.args, **call.kwargs)
            if backward:
                recorder.phase = "backward"
                results = [tensor for tensor in tensors(out) if tensor.requires_grad]
                torch.autograd.backward(results, [torch.empty_like(tensor) for tensor in results])
        recorder.close()
    runnable.attributes.restore()
    for parameter in runnable.model.parameters():
        parameter.grad = None
    return recorder.memory_trace()


def traced(model: nn.Module, inputs: object, *, backward: bool = False) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    return record(RunnableModel("model", meta_copy(model), parse(inputs)), backward=backward)  # type: ignore[arg-type]


def mlp() -> nn.Module:
    """Three layers, 64 to 10 features."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))


def encoder() -> nn.Module:
    """Attention with dropout, in two blocks."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)


def test_two_layers_event_by_event() -> None:
    """Each layer makes its output; the first is let go of when the second has read it, the last is the result."""
    memory_trace = traced(
        nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False), nn.Tanh()), "float32[2, 8]"
    )
    assert memory_trace.held == (
        InitialStorage(0, 512, "param"),
        InitialStorage(1, 256, "param"),
        InitialStorage(2, 64, "input"),
    )
    assert memory_trace.events == (
        MemoryEvent("aten.mm", "0", made=((3, 128),)),
        MemoryEvent("aten.mm", "1", made=((4, 32),)),
        MemoryEvent("aten.tanh", "2", made=((5, 32),), freed=(3,)),
        MemoryEvent("", "", "", freed=(4,)),
    )
    assert list(memory_trace.alive()) == [960, 992, 896, 864]
    assert memory_trace.peak() == 992
    assert (
        memory_trace.held_bytes(),
        memory_trace.held_bytes("param"),
        memory_trace.held_bytes("input", "buffer"),
    ) == (832, 768, 64)


def test_one_layer_forward_and_backward() -> None:
    """A gradient for the result and one for each weight, those of weights alive to the end."""
    memory_trace = traced(nn.Sequential(nn.Linear(8, 4, bias=False)), "float32[2, 8]", backward=True)
    made = [(event.op, event.path, event.phase, sum(size for _, size in event.made)) for event in memory_trace.events]
    assert made == [
        ("aten.mm", "0", "forward", 2 * 4 * FLOAT),
        ("aten.empty_like", "", "backward", 2 * 4 * FLOAT),
        ("aten.mm", "0", "backward", 8 * 4 * FLOAT),
        ("", "", "", 0),  # the gradient of the result goes
    ]
    assert memory_trace.peak() == memory_trace.held_bytes() + 2 * 32 + 128


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param((), 10, id="no operator at all"),
        pytest.param((MemoryEvent("a", "", made=((1, 5),)), MemoryEvent("b", "", made=((2, 7),))), 22, id="two together"),
        pytest.param((MemoryEvent("a", "", made=((1, 5),)), MemoryEvent("b", "", made=((2, 7),), freed=(1,))), 17, id="one after the other"),
        pytest.param((MemoryEvent("a", "", made=((1, 5),)), MemoryEvent("b", "", made=((1, 8),))), 18, id="resized"),
        pytest.param((MemoryEvent("a", "", freed=(0,)), MemoryEvent("b", "", made=((1, 4),))), 10, id="what was held before may go"),
    ],
)  # fmt: skip
def test_peaks_of_memory_traces_by_hand(events: tuple[MemoryEvent, ...], expected: int) -> None:
    """What was there before the pass, and the most that was alive beside it."""
    assert MemoryTrace((InitialStorage(0, 10, "param"),), events).peak() == expected


class Alive(TorchDispatchMode):
    """Follows the storages of a real run, each by a finalizer of its own; written apart from what it checks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._met: set[int] = set()

    def know(self, tensor: torch.Tensor) -> None:
        self._met.add(tensor.untyped_storage().data_ptr())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                self._meet(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() not in self._met:
            self._met.add(storage.data_ptr())
            self.now += storage.nbytes()
            weakref.finalize(storage, self._lost, storage.data_ptr(), storage.nbytes())

    def _lost(self, address: int, size: int) -> None:
        self._met.discard(address)
        self.now -= size


def step(model: nn.Module, *args: torch.Tensor, backward: bool) -> Any:
    """A pass as the memory trace is said to record it."""
    model.train(backward)
    with torch.set_grad_enabled(backward):
        out = model(*args)
        if backward:
            torch.autograd.backward([out], [torch.empty_like(out)])
    return out


MODELS: dict[str, tuple[Callable[[], nn.Module], list[int], int]] = {
    "MLP": (mlp, [32, 64], 0),
    "encoder": (encoder, [2, 12, 32], 0),
    "ResNet-18": (torchvision.models.resnet18, [2, 3, 64, 64], 2 * 64 * FLOAT),
    "MobileNetV3": (torchvision.models.mobilenet_v3_small, [2, 3, 64, 64], 2 * 72 * FLOAT),
}
"""A model, its input, and the statistics of the batch norm at the peak of inference: on meta it gives them back."""


@pytest.mark.parametrize("backward", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ("ResNet-18", "MobileNetV3") else ()) for name in MODELS],
)
def test_as_many_bytes_as_real_storages(name: str, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak equals that of a real run on the CPU in which every storage is followed.

    But for one thing: batch norm in eval mode gives its statistics back on meta, and two empty tensors on the CPU.
    Sums of gradients are made anew here, as torch makes them while it is watched.
    """
    monkeypatch.setattr(recorder_module, "with_sums_in_place", lambda events, sums: events)
    build, shape, statistics = MODELS[name]
    model, data, alive = build(), torch.rand(shape), Alive()
    memory_trace = traced(model, shape, backward=backward)
    for tensor in (*model.parameters(), *model.buffers(), data):
        alive.know(tensor)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with alive:
            out = step(model, data, backward=backward)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert memory_trace.peak() - memory_trace.held_bytes() == alive.peak + (0 if backward else statistics)
    assert out is not None


class Fork(nn.Module):
    """Two branches from one large tensor, so that its gradient is a sum; one branch may hand its own on as it is."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.first, self.plain = nn.Linear(8, 4096, bias=False), plain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = self.first(x)
        return (held if self.plain else held.sin()) + held.cos()


@pytest.mark.parametrize("plain", [False, True], ids=["two functions", "one hands on its gradient"])
def test_sums_of_gradients_are_in_place_where_torch_makes_them_so(plain: bool) -> None:
    """The peak is torch's own, whose second sum leaves a gradient alone that another holds."""
    model, data = Fork(plain), torch.rand(256, 8)
    memory_trace = traced(model, [256, 8], backward=True)
    assert memory_trace.peak() - memory_trace.held_bytes() == _allocated(model, data, backward=True)


@pytest.mark.parametrize("backward", [False, True], ids=["inference", "training"])
def test_as_many_bytes_as_torch_itself_allocates(backward: bool) -> None:
    """Products of matrices take no workspace, so the peak of an MLP is that of torch's allocator."""
    model, data = mlp(), torch.rand(32, 64)
    memory_trace = traced(model, [32, 64], backward=backward)
    assert memory_trace.peak() - memory_trace.held_bytes() == _allocated(model, data, backward=backward)


def test_convolutions_take_a_workspace_beside() -> None:
    """What oneDNN allocates in its kernels is not on the memory trace: the memory trace is a lower bound of the allocator's peak."""
    model, data = torchvision.models.resnet18(), torch.rand(2, 3, 112, 112)
    memory_trace = traced(model, [2, 3, 112, 112])
    maps, statistics = 2 * 64 * 56 * 56 * FLOAT, 2 * 64 * FLOAT
    assert (
        memory_trace.peak() - memory_trace.held_bytes() == 2 * maps + statistics
    )  # the first maps before and after their norm
    assert memory_trace.peak() - memory_trace.held_bytes() <= _allocated(model, data, backward=False)


def _allocated(model: nn.Module, *args: torch.Tensor, backward: bool) -> int:
    step(model, *args, backward=backward)
    model.zero_grad(set_to_none=True)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = step(model, *args, backward=backward)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    assert out is not None
    return peak


def test_gradients_belong_to_the_layer_whose_operator_they_undo() -> None:
    """Every event of the backward pass of a ResNet has the path of a layer, but for the gradient it starts from."""
    memory_trace = traced(torchvision.models.resnet18(), [2, 3, 64, 64], backward=True)
    paths = {
        event.path
        for event in memory_trace.events
        if event.phase == "backward" and event.op == "aten.convolution_backward"
    }
    assert paths == {
        event.path for event in memory_trace.events if event.phase == "forward" and event.op == "aten.convolution"
    }
    assert {event.op for event in memory_trace.events if event.phase == "backward" and not event.path} == {
        "aten.empty_like"
    }


def test_a_memory_trace_is_plain_data_and_the_same_again() -> None:
    """It survives pickling, two runs give one memory trace, and dropout does not change it."""
    first, again = (traced(encoder(), [2, 12, 32], backward=True) for _ in range(2))
    assert first == again == pickle.loads(pickle.dumps(first))


def test_a_real_run_gives_the_same_memory_trace() -> None:
    """The recorder only follows storages, so a model with memory can be recorded, too."""
    model = encoder()
    real = record(RunnableModel("model", model, parse([2, 12, 32]), real=True), backward=True)  # type: ignore[arg-type]
    assert real == traced(encoder(), [2, 12, 32], backward=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_model_holds_as_a_plain_attribute_was_there_before() -> None:
    """A tensor that is neither parameter nor buffer is no allocation of the pass."""

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    memory_trace = traced(Holds(), [2, 8])
    assert memory_trace.held_bytes("other") == 8 * FLOAT
    assert [event.made[0][1] for event in memory_trace.events] == [2 * 8 * FLOAT]
