"""What users of model summaries and FLOP counters complained of, each as a small model; the issue is in the docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_modelbudget.summary import Flops, Layer, Summary

Count = Callable[..., Summary]


def row(summary: Summary, path: str) -> Layer:
    return next(layer for layer in summary.layers if layer.path == path)


class Call(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


# Parameters


class Translator(nn.Module):
    """Encoder, decoder and head use one table, handed around as a module and as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(30, 8)
        self.encoder = nn.ModuleDict({"embed": self.shared, "layer": nn.Linear(8, 8)})
        self.decoder = nn.ModuleDict({"embed": nn.Embedding(30, 8), "layer": nn.Linear(8, 8)})
        self.decoder["embed"].weight = self.shared.weight
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.shared.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        memory = self.encoder["layer"](self.encoder["embed"](ids))
        return self.head(self.decoder["layer"](self.decoder["embed"](ids) + memory))


def test_embeddings_tied_three_times_count_once(count: Count) -> None:
    """TylerYep/torchinfo#377: mBART's shared table counted for encoder, decoder and head."""
    summary = count(Translator, "int64[B, T]", B=1, T=4)
    assert summary.params == 30 * 8 + 2 * 72
    assert [row(summary, path).weights[0].tied_to for path in ("shared", "decoder.embed", "head")] == [None, "shared.weight", "shared.weight"]  # fmt: skip


def test_blocks_used_again_do_not_multiply_params(count: Count) -> None:
    """torchinfo#322, pytorch-summary#37, #131: blocks called several times made YOLO and T5 up to 2.37x as large."""

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
            self.blocks = nn.ModuleList([self.block, self.block, nn.Linear(6, 6)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return self.block(x)

    summary = count(Again, "float32[B, 6]", B=1)
    assert summary.params == 2 * 42
    assert summary.flops == Flops(4 * 2 * 6 * 6)
    assert row(summary, "block.0").calls == 3


def test_a_shared_activation_module_changes_nothing(count: Count) -> None:
    """torchinfo#327: one ReLU module used by all layers moved the total from 2,524,144 to 2,903,728."""

    def build(shared: bool) -> nn.Module:
        act = nn.PReLU()
        acts = [act if shared else nn.PReLU() for _ in range(3)]
        return nn.Sequential(*(layer for one in acts for layer in (nn.Linear(5, 5), one)))

    assert count(lambda: build(True), "float32[B, 5]", B=1).params == 3 * 30 + 1
    assert count(lambda: build(False), "float32[B, 5]", B=1).params == 3 * 30 + 3


def test_a_parameter_of_a_sequential_subclass_is_counted(count: Count) -> None:
    """torchinfo#137: what a container holds itself was missed."""

    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 3))
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.scale

    summary = count(Scaled, "float32[B, 4]", B=1)
    assert summary.params == 15 + 3
    assert row(summary, "(root)").params == 3


def test_parameters_without_a_layer_are_counted(count: Count) -> None:
    """torchinfo#28, #54, pytorch-summary#148 (8 instead of 9): Parameter, ParameterList, ParameterDict."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.zeros(9))
            self.many = nn.ParameterList([torch.zeros(2), torch.zeros(3)])
            self.named = nn.ParameterDict({"a": torch.zeros(4)})
            self.layer = nn.Linear(9, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x * self.one) + self.many[0].sum() + self.named["a"].sum()

    summary = count(Held, "float32[B, 9]", B=1)
    assert summary.params == 9 + 2 + 3 + 4 + 10
    assert sum(layer.params for layer in summary.layers) == summary.params


def test_an_exchanged_output_layer_is_counted_as_it_is(count: Count) -> None:
    """torchinfo#243: params of the output layer inaccurate after it was replaced."""

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1000))
        model[1] = nn.Linear(8, 7)
        return model

    summary = count(build, "float32[B, 8]", B=1)
    assert (row(summary, "1").params, summary.params) == (63, 72 + 63)


@pytest.mark.parametrize("params", [2**24 + 1, 2**31 + 1, 2**53 + 1], ids=["2^24 + 1", "2^31 + 1", "2^53 + 1"])
def test_large_counts_are_exact(params: int, count: Count) -> None:
    """pytorch-OpCounter#71: sums kept in float32 were off by one above 2^24."""
    summary = count(lambda: nn.Linear(1, params, bias=False), "float32[1, 1]")
    assert (summary.params, summary.flops) == (params, Flops(2 * params))


def test_a_root_of_its_own_and_layers_never_called_are_counted(count: Count) -> None:
    """ultralytics/thop#116, #143: a model that is one layer had 0 params; what forward never called was dropped."""
    assert count(lambda: nn.Linear(3, 2), "float32[B, 3]", B=1).params == 8

    class Idle(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.idle = nn.Linear(5, 5)

    summary = count(Idle, "float32[B, 3]", B=1)
    assert summary.params == 8 + 30
    assert row(summary, "idle").calls == 0


def test_params_of_experts_count_once_each(count: Count) -> None:
    """DeepSpeed#3619: params of experts were multiplied; those that a token does not visit belong to the model."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 8, bias=False)
            self.experts = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weights = self.gate(x).softmax(-1)
            return sum(self.experts[index](x) * weights[:, index, None] for index in (1, 5))

    summary = count(Experts, "float32[B, 4]", B=1)
    assert summary.params == 32 + 8 * 16
    assert summary.flops == Flops(2 * (32 + 2 * 16))
    assert [row(summary, f"experts.{index}").calls for index in range(8)] == [0, 1, 0, 0, 0, 1, 0, 0]


# Inputs and outputs that made others fail


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        pytest.param(lambda x: torch.distributions.Categorical(logits=x), ["float32[2, 3]"], id="a distribution (torchinfo#329)"),
        pytest.param(lambda x, y: x + y, ["float32[2, 3]", "float32[2, 3]"], id="two positions (torchinfo#166)"),
        pytest.param(lambda x: x.data * 2, ["float32[2, 3]"], id="x.data (s5-pytorch#5)"),
        pytest.param(lambda ids: F.one_hot(ids, 5).float(), ["int64[2, 3]"], id="one_hot (torchview#107)"),
        pytest.param(lambda x: x if x is not None and len(x) else None, ["float32[2, 3]"], id="truth of an input (torchinfo#252)"),
        pytest.param(
            lambda x: x if torch.ones(2, 3, device=x.device).to(device=x.device, dtype=torch.bool).all() else None,
            ["float32[2, 3]"],
            id="a mask of ones is asked (pytorch#126738)",
        ),
        pytest.param(lambda x: None, ["float32[2, 3]"], id="None"),
        pytest.param(lambda x: {"text": "word", "number": 3, "x": [x, (x,)]}, ["float32[2, 3]"], id="nested, with words"),
    ],
)  # fmt: skip
def test_unusual_inputs_and_outputs(function: Any, inputs: list[str], count: Count) -> None:
    """Each made some tool fail."""
    assert count(lambda: Call(function), inputs).flops == Flops(0)


def test_layers_in_a_plain_list_still_cost(count_live: Count) -> None:
    """torchview#99: modules held in a Python list, which torch itself does not see, failed with a KeyError."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(4, 4, bias=False)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[0](x)

    assert count_live(Hidden(), "float32[B, 4]", B=1).flops == Flops(32)


def test_a_scripted_model_is_counted(count_live: Count) -> None:
    """pytorch-OpCounter#218: ScriptModules failed; their params and FLOPs are those of the model."""
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    summary = count_live(model, "float32[B, 4]", B=1)
    assert (summary.params, summary.flops) == (58, Flops(2 * (32 + 16)))


def test_the_state_dict_gains_nothing(count_live: Count) -> None:
    """pytorch-OpCounter#82, #168: `total_ops` was left in the state dict."""
    model = nn.Sequential(nn.Linear(2, 2))
    before = list(model.state_dict())
    count_live(model, "float32[B, 2]", B=1)
    assert list(model.state_dict()) == before


def test_an_attribute_of_the_user_survives(count_live: Count) -> None:
    """ultralytics/thop#151: a tool's bookkeeping overwrote attributes of the same name."""
    model = nn.Linear(2, 2)
    model.flops, model.total_params = "mine", ["mine"]  # type: ignore[assignment]
    count_live(model, "float32[B, 2]", B=1)
    assert (model.flops, model.total_params) == ("mine", ["mine"])
