"""Autocast and CUDA's kernels on the meta device, against torch's own autocast on tensors that pretend to be CUDA's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.torch_version import TorchVersion

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.meta.dispatch import MetaDispatcher
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.trace.observer import observing
from tests.real_steps import KERNELS, allocated, sgd


class Losses(nn.Module):
    """Functions of each list of autocast, mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Linear(16, 32), nn.Parameter(torch.rand(32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x) @ self.mix
        hidden = torch.einsum("bi,ij->bj", hidden, self.mix) + torch.addmm(self.mix[0], hidden, self.mix)
        scaled = hidden.softmax(-1).log() + hidden.pow(2) + hidden.exp().cumsum(-1) + hidden.tanh()
        return nn.functional.cross_entropy(scaled, scaled.detach().argmax(-1)) + hidden.sum()


class Twice(nn.Module):
    """One weight, used twice: it is cast once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(self.layer(x).relu())
        return out


def encoder() -> nn.Module:
    """Attention with dropout, from torch's own Python function."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True), 2)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "lists of autocast": (Losses, [8, 16]),
    "one weight twice": (Twice, [8, 64]),
    "encoder": (encoder, [2, 12, 32]),
    "ResNet-18": (torchvision.models.resnet18, [2, 3, 64, 64]),
    "ConvNeXt": (torchvision.models.convnext_tiny, [2, 3, 64, 64]),
}


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves inside, parameters among them."""
    found: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    alive.clear()


def ours(build: Callable[[], nn.Module], shape: list[int], dtype: torch.dtype) -> int:
    with abstract():
        model = build()
    kernels = DeviceKernels(cuda=True)
    with observing(Recorder(model), MetaDispatcher()), kernels, saved_bytes() as found, kernels.autocast(dtype):
        model(torch.empty(shape, device="meta"))
    return sum(found.values())


def torchs(build: Callable[[], nn.Module], shape: list[int], dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model = build()
    before = torch.get_autocast_dtype("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            with saved_bytes() as found:
                model(torch.empty(shape, device="cuda"))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", before)
            torch.clear_autocast_cache()
    return sum(found.values())


@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.7", reason="older torch ends the process on pretended CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_autocast_saves_what_torchs_own_saves(name: str, dtype: torch.dtype) -> None:
    """The same bytes as under `torch.autocast` on a device that is only pretended, which chooses unfused attention."""
    build, shape = MODELS[name]
    with sdpa_kernel(SDPBackend.MATH):
        assert ours(build, shape, dtype) == torchs(build, shape, dtype)


def saved_by(call: Callable[[], Any]) -> int:
    with DeviceKernels(cuda=True), saved_bytes() as found:
        call()
    return sum(found.values())


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)


def test_dropout_keeps_one_byte_for_each_element() -> None:
    """Not a mask in the dtype of its input, as on the CPU."""
    assert saved_by(lambda: nn.functional.dropout(meta(100), 0.5)) == 100
    assert saved_by(lambda: nn.Dropout(0.5)(meta(100))) == 100
    assert saved_by(lambda: nn.functional.dropout(meta(100), 0.5, training=False)) == 0


def test_attention_of_three_dimensions_is_unfused() -> None:
    """Fused kernels of CUDA want four; dropout then keeps a byte and a number more for each score, as on a GPU."""
    query, scores = meta(2, 8, 16), 2 * 8 * 8

    def saved(dropout: float) -> int:
        return saved_by(lambda: nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=dropout))

    assert saved(0.5) - saved(0.0) == scores * (1 + 4)


HEADS, ROWS, SIZE = 4, 96, 64


@pytest.mark.parametrize(
    ("dtype", "mask", "size", "kept"),
    [
        pytest.param(torch.bfloat16, False, SIZE, 4 * ROWS * SIZE * 2 + ROWS * 4, id="flash"),
        pytest.param(torch.float32, False, SIZE, 4 * ROWS * SIZE * 4 + ROWS * 4, id="efficient"),
        pytest.param(torch.float16, True, SIZE, 4 * ROWS * SIZE * 2 + ROWS * 4, id="efficient with a mask"),
    ],
)
def test_fused_attention_keeps_operands_result_and_one_number_a_row(
    dtype: torch.dtype, mask: bool, size: int, kept: int
) -> None:
    """Query, key, value, output and the logarithm of the sum of each row; no square of scores."""
    query, key, value = (meta(2, HEADS, ROWS, size, dtype=dtype) for _ in range(3))
    bias = torch.zeros(ROWS, ROWS, dtype=dtype, device="meta") if mask else None
    found = saved_by(lambda: nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias))
    small = 2 * 16 + (bias.nbytes if bias is not None else 0)  # seeds, and the mask itself
    assert 0 <= found - 2 * HEADS * kept <= small


def test_heads_of_odd_size_are_not_fused_in_single_precision() -> None:
    """The kernel reads four numbers at a time; else the square of scores is kept."""
    query, key, value = (meta(2, HEADS, ROWS, 30) for _ in range(3))
    assert saved_by(lambda: nn.functional.scaled_dot_product_attention(query, key, value)) > 2 * HEADS * ROWS * ROWS * 4


class Penalised(nn.Module):
    """A critic whose slope is held at one (Gulrajani et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            scores = self.critic(x)
            (slope,) = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True)
        return (slope.norm(2, 1) - 1).pow(2).mean()


class Spectral(nn.Module):
    """A loss in frequencies, with a window that the pass makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(400, 400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stft(self.layer(x), 64, 16, window=torch.hann_window(64), return_complex=True).abs().mean()


@pytest.mark.skipif(KERNELS is None, reason="kernels of this CPU are not known")
@pytest.mark.parametrize(("build", "shape"), [(Penalised, [64, 24]), (Spectral, [4, 400])])
def test_constants_go_where_what_they_meet_is(build: type[nn.Module], shape: list[int]) -> None:
    """First gradients of penalties, and windows: a step takes what a real one takes."""
    model = build()
    planned = plan(model, shape, training={"kernels": KERNELS, "optimizer": "sgd"}).peak_bytes
    assert planned == pytest.approx(allocated(model, torch.rand(shape), sgd), rel=0.01)
