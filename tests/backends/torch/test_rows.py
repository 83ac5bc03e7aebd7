"""Rows of torch models: paths, shapes, own weights, ties, calls and edges, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pytest_modelbudget.backends.torch.model.unknown_values import mark_unknown
from pytest_modelbudget.summary import Flops, Layer, Summary

Count = Callable[..., Summary]


def row(summary: Summary, path: str) -> Layer:
    return next(layer for layer in summary.layers if layer.path == path)


def paths(summary: Summary) -> list[str]:
    return [layer.path for layer in summary.layers]


class Block(nn.Module):
    """A residual block that uses one activation twice."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.act(self.norm(self.conv(x))) + x)


class Tied(nn.Module):
    """A language model in small: tied head, position table of its own, a causal mask as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(50, 16)
        self.wpe = nn.Parameter(torch.zeros(32, 16))
        self.register_buffer("mask", torch.ones(32, 32, dtype=torch.bool).tril())
        self.block = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        x = self.wte(ids) + self.wpe[:length]
        x = x.masked_fill(~self.mask[length - 1, :length, None], 0.0)
        return self.head(x + self.block(x))


def test_containers_come_before_their_rows_and_edges_join_leaves(count: Count) -> None:
    """Rows follow `named_modules()`; a sum is a row fed by both its terms; an in-place ReLU is the source of what follows."""
    summary = count(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), Block()), "float32[B, 3, 6, 6]", B=2)
    assert paths(summary) == ["0", "1", "1.conv", "1.norm", "1.act", "1.add"]
    assert [layer.container for layer in summary.layers] == [False, True, False, False, False, False]
    assert row(summary, "1.conv").connected_to == (("0",),)
    assert row(summary, "1.act").connected_to == (("1.norm",), ("1.add",))
    assert row(summary, "1.add").connected_to == (("1.act", "0"),)
    assert row(summary, "1.act").calls == 2
    assert row(summary, "1.act").output_text == "[B, 8, 6, 6]"
    assert row(summary, "1").connected_to == ()
    assert (summary.params, summary.buffers) == (3 * 8 + 8 + 8 * 8 * 9 + 16, 17)


def test_tied_weights_count_once_and_name_their_owner(count: Count) -> None:
    """The head shows the embedding's weight as tied; the root owns its table and its mask."""
    summary = count(Tied, {"ids": "int64[B, T]"}, B=2, T=5)
    assert summary.params == 50 * 16 + 32 * 16 + 16 * 16 + 16
    assert summary.buffers == 32 * 32
    assert row(summary, "head").weights[0].tied_to == "wte.weight"
    assert row(summary, "head").params == 0
    assert [weight.name for weight in row(summary, "(root)").weights] == ["wpe", "mask"]
    assert row(summary, "(root)").container
    assert [weight.role for weight in row(summary, "(root)").weights] == ["param", "buffer"]
    assert row(summary, "wte").connected_to == (("ids",),)
    assert row(summary, "add").connected_to == (("wte", "block"),)
    assert row(summary, "head").connected_to == (("add",),)
    assert str(summary.outputs[0]) == "float32[B, T, 50]"


def test_weights_tied_through_their_storage(count: Count, count_live: Count) -> None:
    """Two Parameter objects on one memory are one weight, also when one is the other transposed."""

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False))
        model[1].weight = nn.Parameter(model[0].weight.detach().t())
        return model

    for summary in (count(build, "float32[B, 4]", B=1), count_live(build(), "float32[B, 4]", B=1)):
        assert summary.params == 24
        assert row(summary, "1").weights[0].tied_to == "0.weight"


def test_a_parameter_registered_under_two_names_stays_one(count: Count) -> None:
    """Small parameters made outside any module are moved to meta as one object."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
            self.first, self.second = weight, weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.first + x @ self.second

    summary = count(Twice, "float32[B, 2]", B=1)
    assert summary.params == 6
    assert [weight.tied_to for weight in summary.layers[0].weights] == [None, "(root).first"]


def test_shared_and_never_called_modules(count: Count) -> None:
    """One module under two names is one row; one that is never called has calls 0, no outputs, and its params."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.alias = self.used
            self.unused = nn.Linear(4, 2)
            self.extra = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.extra[0](self.alias(self.used(x)))

    summary = count(Shared, "float32[B, 4]", B=3)
    assert paths(summary) == ["used", "unused", "extra.0"]
    assert (row(summary, "used").calls, row(summary, "unused").calls) == (2, 0)
    assert row(summary, "used").connected_to == (("0",), ("used",))
    assert (row(summary, "unused").outputs, row(summary, "unused").params) == ((), 10)
    assert summary.params == 20 + 10 + 20


def test_frozen_layers_are_not_trainable(count: Count) -> None:
    """`requires_grad_(False)` moves a layer's params to the non-trainable ones."""

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        model[0].requires_grad_(False)
        return model

    summary = count(build, "float32[B, 4]", B=1)
    assert (summary.trainable_params, summary.non_trainable_params) == (18, 40)


def test_dtypes_are_kept_and_sized(count: Count) -> None:
    """A model moved to bfloat16 while building counts two bytes for each param, and gives bfloat16."""
    summary = count(lambda: nn.Linear(4, 8).to("cpu", torch.bfloat16), "bfloat16[B, 4]", B=1)
    assert summary.weight_bytes == 40 * 2
    assert str(summary.outputs[0]) == "bfloat16[B, 8]"


@dataclass
class Output:
    logits: torch.Tensor
    hidden: list[torch.Tensor]
    loss: None = None


class Heads(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(4, 3), nn.Linear(4, 2), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.a(x), self.b(x))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda a, b: (a, b), id="tuple"),
        pytest.param(lambda a, b: {"a": a, "b": [b], "none": None}, id="dict with a list and None"),
        pytest.param(lambda a, b: Output(a, [b]), id="dataclass"),
        pytest.param(lambda a, b: ((a,), ("word", 3, [b])), id="nested, with plain values"),
    ],
)
def test_outputs_are_found_in_any_structure(wrap: Callable[..., Any], count: Count) -> None:
    """Two tensors come out, in order, whatever holds them."""
    summary = count(lambda: nn.Sequential(Heads(wrap)), "float32[B, 4]", B=5)
    assert [str(spec) for spec in summary.outputs] == ["float32[B, 3]", "float32[B, 2]"]
    assert row(summary, "0").output_text == "[B, 3], [B, 2]"


def test_nested_inputs_by_position_and_name(count: Count) -> None:
    """A dict of tensors, a keyword and a plain value reach forward as declared; edges name the inputs."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Linear(10, 5), nn.Linear(4, 5)

        def forward(self, batch: dict[str, torch.Tensor], *, item: torch.Tensor, double: bool) -> torch.Tensor:
            out = torch.cat([self.user(batch["user"]), self.item(item)], 1)
            return torch.cat([out, out], 1) if double else out

    inputs = {"args": [{"user": "float32[B, 10]"}], "kwargs": {"item": "float32[B, 4]", "double": True}}
    summary = count(Towers, inputs, B=2)
    assert row(summary, "user").connected_to == (("0.user",),)
    assert row(summary, "item").connected_to == (("input item",),)
    assert [str(port) for port in summary.inputs] == ["0.user float32[B, 10]", "item float32[B, 4]"]
    assert str(summary.outputs[0]) == "float32[B, 20]"


def test_an_input_named_like_a_layer_is_told_apart(count: Count) -> None:
    """In a Sequential the first input and the first layer are both called 0."""
    summary = count(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "float32[B, 2]", B=1)
    assert [layer.connected_to for layer in summary.layers] == [(("input 0",),), (("0",),)]


def test_lazy_modules_get_their_shapes_from_the_forward_pass(count: Count, count_live: Count) -> None:
    """Built here they are finished; of a user's model only a copy is: 5*10+10 params, and the original stays lazy."""
    assert count(lambda: nn.Sequential(nn.LazyLinear(10)), "float32[B, 5]", B=1).params == 60
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))
    summary = count_live(model, "float32[B, 2, 5, 5]", B=1)
    assert summary.params == 2 * 4 * 9 + 4 + 8 + 36 * 10 + 10
    assert isinstance(model[3], nn.LazyLinear)
    assert isinstance(model[3].weight, nn.UninitializedParameter)


def test_lazy_modules_beside_values_that_are_not_known(count_live: Count) -> None:
    """A tensor of an earlier builder is still held: whether it is asked for has nothing to do with a lazy parameter."""
    held = torch.zeros(1)
    mark_unknown(held)
    assert count_live(nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(3)), "float32[B, 5]", B=2).params == 10 + 18


def test_parametrizations_are_rolled_up(count: Count) -> None:
    """Weight norm adds `out` magnitudes to the layer that has them, and no rows."""
    summary = count(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU()), "float32[B, 3]", B=1
    )
    assert [(layer.path, layer.type) for layer in summary.layers] == [("0", "Linear"), ("1", "ReLU")]
    names = {weight.name: weight.shape for weight in row(summary, "0").weights}
    assert names == {"bias": (4,), "weight.original0": (4, 1), "weight.original1": (4, 3)}
    assert row(summary, "1").connected_to == (("0",),)


def test_orthogonal_and_spectral_norm_build_without_memory(count: Count) -> None:
    """Both read values while they are built; spectral norm keeps its two vectors as buffers of the layer."""

    def build() -> nn.Module:
        return nn.Sequential(
            parametrizations.orthogonal(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 3))
        )

    summary = count(build, "float32[B, 4]", B=1)
    assert summary.params == 20 + 15
    assert {weight.name for weight in row(summary, "1").weights if weight.role == "buffer"} == {
        "weight.0._u",
        "weight.0._v",
    }


def test_parameter_lists_are_rows_of_weights(count: Count) -> None:
    """A ParameterList owns what is in it and is never called."""

    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.ParameterList([torch.zeros(4, 2), torch.zeros(4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.bank[0]

    summary = count(Bank, "float32[B, 4]", B=1)
    assert [(layer.path, layer.params, layer.calls) for layer in summary.layers] == [("bank", 12, 0)]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(nn.DataParallel, id="DataParallel"),
        pytest.param(torch.compile, id="torch.compile"),
        pytest.param(lambda model: nn.Sequential(nn.DataParallel(model))[0], id="taken from a container"),
    ],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], Any], count_live: Count) -> None:
    """The rows of a wrapped model are those of the model."""
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert count_live(wrap(plain), "float32[B, 4]", B=1).layers == count_live(plain, "float32[B, 4]", B=1).layers


def test_a_wrapper_inside_a_model_has_no_row(count: Count) -> None:
    """Its path is left out, and edges pass through it."""
    summary = count(lambda: nn.Sequential(nn.DataParallel(nn.Linear(4, 3)), nn.ReLU()), "float32[B, 4]", B=1)
    assert [(layer.path, layer.type) for layer in summary.layers] == [("0", "Linear"), ("1", "ReLU")]
    assert row(summary, "1").connected_to == (("0",),)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scripted_modules_show_their_params(count_live: Count) -> None:
    """Their inside cannot be watched: params and total FLOPs are known, calls of inner layers are not."""
    model = torch.jit.script(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    summary = count_live(model, "float32[B, 8]", B=2)
    assert summary.params == 36
    assert summary.flops.value == 2 * 2 * 8 * 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.filterwarnings("ignore")
def test_statically_quantised_layers_cost_what_the_float_ones_do(count_live: Count) -> None:
    """Convolutions and matrix products of int8 tensors are counted, additions of them are free."""
    quantized = torch.ao.nn.quantized

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = quantized.Quantize(0.1, 0, torch.quint8), quantized.DeQuantize()
            self.conv = quantized.Conv2d(4, 8, 3, padding=1, groups=2)
            self.up = quantized.ConvTranspose2d(8, 2, 2, stride=2)
            self.line, self.add = quantized.Linear(16, 5), quantized.QFunctional()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(self.quant(x))
            y = self.up(self.add.add(y, y))
            return self.dequant(self.line(y))

    summary = count_live(Net().eval(), "float32[B, 4, 8, 8]", B=1)
    macs = (8 * 64) * (2 * 9) + (8 * 64) * (2 * 4) + (2 * 16 * 5) * 16
    assert summary.flops == Flops(2 * macs)
    assert summary.params == 8 * 2 * 9 + 8 + 8 * 2 * 4 + 2 + 16 * 5 + 5


def test_dynamically_quantised_weights_are_not_zero(count_live: Count) -> None:
    """Packed int8 weights count one byte for each element, their float32 biases four."""
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(30, 40), nn.ReLU()), {nn.Linear})
    summary = count_live(model, "float32[B, 30]", B=2)
    assert (summary.params, summary.weight_bytes) == (30 * 40 + 40, 30 * 40 + 40 * 4)
    assert summary.flops.value == 2 * 2 * 30 * 40
    assert row(summary, "0").weights[0].dtype == "qint8"
    assert [layer.path for layer in summary.layers] == ["0", "1"]


def test_edges_of_a_deep_residual_chain_stay_short(count: Count) -> None:
    """A pre-norm chain: each block's sum is a row of its own, so no list grows with the depth."""

    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mlp(self.norm(x))

    summary = count(lambda: nn.Sequential(*(PreNorm() for _ in range(30))), "float32[B, 8]", B=1)
    assert row(summary, "29.norm").connected_to == (("28.add",),)
    assert row(summary, "29.add").connected_to == (("28.add", "29.mlp"),)
    assert row(summary, "29.mlp").connected_to == (("29.norm",),)
