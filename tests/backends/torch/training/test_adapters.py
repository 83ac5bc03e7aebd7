"""LoRA, DoRA and bases of 4 and 8 bits: peaks against real steps of peft and bitsandbytes, and against hand sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.linear_layers import linear_layers, quantizable
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Inference, MemoryTrace, Recipe, Training
from tests.real_steps import KERNELS, allocated, measured, sgd

SHAPE = [4, 16, 64]
FLOAT = 4
COUNTERS = 64
"""Bytes of scalars, code books and the like that one of two loops has alive and the other has not."""


def traced(model: nn.Module, shape: list[int], recipe: Recipe) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    return record_step(RunnableModel("model", meta_copy(model), parse(shape)), {}, recipe)  # type: ignore[arg-type]


class Block(nn.Module):
    """Two layers, the second of which is adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256, bias=False), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(functional.relu(self.up(x)))
        return out


class Net(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(64, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(x)
        return out


RECIPE = Training(kernels=KERNELS, optimizer="sgd")
LORA = {"rank": 4, "targets": ["down"]}

QUANTIZED = {
    "nf4": (
        {"base": "nf4"},
        lambda cells: cells // 2 + FLOAT * cells // 64,
    ),
    "nf4, blocks of 128": (
        {"base": {"nf4": {"block": 128}}},
        lambda cells: cells // 2 + FLOAT * cells // 128,
    ),
    "double": (
        {"base": {"nf4": {"double_quant": True}}},
        lambda cells: cells // 2 + cells // 64 + FLOAT * cells // 64 // 256 + FLOAT * (256 + 1),
    ),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_stored_bytes_of_four_bits_by_hand(name: str) -> None:
    """Half a byte for each element and the scales of its blocks; the head and biases are as they were."""
    options, stored = QUANTIZED[name]
    memory_trace = traced(Net(), SHAPE, replace(RECIPE, lora={**LORA, **options}))
    cells = 64 * 256
    book = FLOAT * 16
    pairs, rest = 2 * 4 * (256 + 64) * FLOAT, (32 * 64 + 2 * 64) * FLOAT
    assert memory_trace.held_bytes("param") == 4 * (stored(cells) + book) + pairs + rest


def test_stored_bytes_of_eight_bits_by_hand() -> None:
    """A byte for each element and a float for each row."""
    memory_trace = traced(Net(), SHAPE, replace(RECIPE, lora={**LORA, "base": "int8"}))
    rows = 2 * (256 + 64)
    pairs, rest = 2 * 4 * (256 + 64) * FLOAT, (32 * 64 + 2 * 64) * FLOAT
    assert memory_trace.held_bytes("param") == 4 * 64 * 256 + rows * FLOAT + pairs + rest


def test_products_of_eight_bits_stay_without_values() -> None:
    """On a GPU a layer without bias that no pair is beside passes gradients on, however small its product is."""
    recipe = Training(optimizer="sgd", lora={**LORA, "base": "int8"})
    assert traced(Net(), [1, 16, 64], recipe).peak() < traced(Net(), SHAPE, recipe).peak()


class Adapted(nn.Module):
    """By hand what peft does with one layer, beside a matrix of magnitudes where there is one."""

    def __init__(self, base: nn.Linear, dropout: float, dora: bool) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(dropout) if dropout else nn.Identity()
        self.first, self.second = (
            nn.Linear(base.in_features, 4, bias=False),
            nn.Linear(4, base.out_features, bias=False),
        )
        self.magnitude = nn.Parameter(torch.ones(base.out_features)) if dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(x)
        plain, x = isinstance(self.dropout, nn.Identity), self.dropout(x)
        if self.magnitude is None:
            return result + self.second(self.first(x)) * 2.0
        return result + self._directed(x, result if plain else None)

    def _directed(self, x: torch.Tensor, result: torch.Tensor | None) -> torch.Tensor:
        eye = torch.eye(self.base.in_features)
        delta, weight = self.second(self.first(eye)).T, self.base.weight
        del eye
        whole = weight + 2.0 * delta.detach()
        norm = torch.linalg.norm(whole, dim=1).detach()
        del whole
        scale = (self.magnitude / norm).view(1, -1)
        low_rank = self.second(self.first(x))
        result = functional.linear(x, weight) if result is None else result - self.base.bias
        out: torch.Tensor = (scale - 1) * result + scale * low_rank * 2.0
        return out


VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "dropout": {"dropout": 0.1},
    "DoRA": {"dora": True},
    "DoRA with dropout": {"dora": True, "dropout": 0.1},
}


@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    """The peak is that of a real step of the same layers, in which all but the pairs is frozen."""
    options = VARIANTS[name]
    model = Net().requires_grad_(False)
    planned = traced(model, SHAPE, replace(RECIPE, lora={**LORA, **options})).peak()
    for block in model.blocks:
        block.down = Adapted(block.down, options.get("dropout", 0.0), options.get("dora", False))
    assert planned == pytest.approx(allocated(model, torch.rand(SHAPE), sgd), abs=COUNTERS)


def test_weights_may_be_trained_beside_the_pairs() -> None:
    """Globs over parameters name those that are trained, too: the head has a gradient, as the pairs have."""
    memory_trace = traced(Net(), SHAPE, replace(RECIPE, lora=LORA, trainable=("head.*",)))
    made = {number: size for event in memory_trace.events for number, size in event.made}
    gradients = sum(size for number, size in made.items() if memory_trace.roles.get(number) == "gradient")
    assert gradients == len(memory_trace.steps) * FLOAT * (2 * 4 * (256 + 64) + 64 * 32)


@pytest.mark.parametrize(("bias", "trained"), [("none", 0), ("lora_only", 2 * 64), ("all", 2 * 64)])
def test_what_is_trained(bias: str, trained: int) -> None:
    """Pairs alone, or with biases of the adapted layers, or with all biases; alpha and rsLoRA change nothing."""
    lora = {**LORA, "bias": bias, "alpha": 32, "rslora": True}
    memory_trace = traced(Net(), SHAPE, replace(RECIPE, lora=lora))
    made = {number: size for event in memory_trace.events for number, size in event.made}
    gradients = sum(size for number, size in made.items() if memory_trace.roles.get(number) == "gradient")
    assert gradients == len(memory_trace.steps) * FLOAT * (2 * 4 * (256 + 64) + trained)


def _quantized_by_bitsandbytes(model: nn.Module, kind: str, bits: Any) -> nn.Module:
    for block in model.blocks:  # type: ignore[union-attr]
        for name in ("up", "down"):
            layer = getattr(block, name)
            bias = layer.bias is not None
            if kind == "int8":
                stored = bits.nn.Linear8bitLt(layer.in_features, layer.out_features, bias, has_fp16_weights=False)
                stored.weight = bits.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
            else:
                stored = bits.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias, torch.float32, kind == "double", "nf4"
                )
                stored.weight = bits.nn.Params4bit(
                    layer.weight.data, False, compress_statistics=kind == "double", quant_type="nf4", module=stored
                )
            setattr(block, name, stored.to("cpu"))
    return model.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
@pytest.mark.parametrize("kind", ["nf4", "double", "int8"])
def test_bases_of_bitsandbytes_under_peft(kind: str) -> None:
    """The plan of the recipe, and of a user's own quantised model with pairs of peft, are the peak of a real step."""
    bits, peft = pytest.importorskip("bitsandbytes"), pytest.importorskip("peft")
    base: Any = {"nf4": {"double_quant": True}} if kind == "double" else kind
    recipe = replace(RECIPE, optimizer="adamw", lora={**LORA, "dropout": 0.1, "base": base})
    planned = traced(Net(), SHAPE, recipe).peak()
    model = _quantized_by_bitsandbytes(Net(), kind, bits)
    setattr(model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["down"], lora_dropout=0.1))
    own = None if kind == "int8" else traced(adapted, SHAPE, replace(recipe, lora={})).peak()
    held = traced(Net(), SHAPE, recipe).held_bytes()
    there = sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in adapted.parameters()}.values())
    real = allocated(adapted, torch.rand(SHAPE), lambda p: torch.optim.AdamW(p, foreach=False)) - there
    assert planned == pytest.approx(real + held - 4 * 16 * 64 * FLOAT, abs=4 * COUNTERS)
    assert own in (None, pytest.approx(planned, abs=4 * COUNTERS))


ADAPTERS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": 4, "use_rslora": True},
    "IA3Config": {"feedforward_modules": ["down"]},
    "AdaLoraConfig": {"init_r": 6, "target_r": 4, "total_step": 100},
    "VeraConfig": {"r": 16},
    "RandLoraConfig": {"r": 4},
    "LoHaConfig": {"r": 4},
    "LoKrConfig": {"r": 4},
    "MissConfig": {"r": 4},
}


@pytest.mark.slow
@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
@pytest.mark.parametrize("config", ADAPTERS)
def test_adapters_of_peft(config: str) -> None:
    """A model that peft made is planned as it is, whatever its adapters are: the peak is that of a real step."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Net(), getattr(peft, config)(target_modules=["down"], **ADAPTERS[config]))
    real = allocated(model, torch.rand(64, 16, 64), sgd)
    assert traced(model, [64, 16, 64], RECIPE).peak() == pytest.approx(real, abs=COUNTERS)


@pytest.mark.parametrize(("kernels", "asked"), [("cuda", True), ("cpu", False)])
def test_a_model_may_ask_whether_cuda_has_autocast(kernels: Any, asked: bool) -> None:
    """As peft's layers over quantised weights do: it is on where the recipe's device is one of CUDA."""
    answers: list[bool] = []

    class Asking(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers.append(torch.is_autocast_enabled())
            return super().forward(x)

    traced(Asking(), SHAPE, Training(kernels=kernels, optimizer="none", precision="bf16-mixed"))
    assert set(answers) == {asked}
    assert not torch.is_autocast_enabled()


@pytest.mark.slow
@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
@pytest.mark.parametrize("kind", ["nf4", "double"])
def test_weights_made_anew_in_a_kernel(kind: str) -> None:
    """A user's layers of 4 bits take the weight itself while they run, in a pass without gradients, too."""
    model = _quantized_by_bitsandbytes(Net(), kind, pytest.importorskip("bitsandbytes")).train()
    data = torch.rand(1, 2, 64, requires_grad=True)
    memory_trace = traced(model, [1, 2, 64], Inference(kernels=KERNELS))
    layer = model.blocks[0].up  # type: ignore[union-attr]
    layer(data)
    real = measured(lambda: layer(data), 1)
    assert max(event.workspace for event in memory_trace.events) == pytest.approx(real, abs=4 * 1024)


MODELS: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2},
    "GPT2LMHeadModel": {"n_embd": 8, "n_layer": 2, "n_head": 2},
    "OPTForCausalLM": {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 4},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_is_quantised_is_what_transformers_quantises(name: str) -> None:
    """A T5 keeps a layer of each block as it is, an OPT of two widths its outer projections."""
    transformers = pytest.importorskip("transformers", minversion="5")
    bnb = pytest.importorskip("bitsandbytes")
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class(**MODELS[name], vocab_size=50))
    planned = {layer.name for layer in quantizable(model, linear_layers(model))}
    left_out = Bnb4BitHfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    replace_with_bnb_linear(model, left_out, transformers.BitsAndBytesConfig(load_in_4bit=True))
    assert planned == {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}


def test_attention_of_torch_keeps_a_projection() -> None:
    """It reads the weight of its own subclass of Linear, which nothing takes the place of."""
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 4))
    names = {layer.name for layer in quantizable(model, linear_layers(model))}
    assert names == {"0.linear1", "0.linear2"}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        pytest.param({"rank": 2, "targets": ["query"]}, "no Linear layer is called 'query'", id="no such layer"),
        pytest.param({**LORA, "base": {"nf4": {"skip": ["up"]}}}, "skip: no layer that would be quantised matches 'up'", id="skip"),
        pytest.param({**LORA, "base": {"nf4": {"skip": ["blocks.*"]}}}, "no linear layer, but for its head", id="nothing left"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_so(lora: dict[str, Any], message: str) -> None:
    """The message names the key, and the model is as before."""
    model = meta_copy(Net())
    before = {name: id(one) for name, one in model.state_dict(keep_vars=True).items()}
    with pytest.raises(ModelBudgetError, match=message):
        record_step(RunnableModel("model", model, parse(SHAPE)), {}, replace(RECIPE, lora=lora))  # type: ignore[arg-type]
    assert {name: id(one) for name, one in model.state_dict(keep_vars=True).items()} == before
    assert all(one.requires_grad for one in model.parameters())


def test_all_linear_layers_of_none() -> None:
    """A model of convolutions has nothing that could be adapted but its head."""
    model = meta_copy(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(8, 2)))
    recipe = replace(RECIPE, lora={"rank": 2, "targets": "all-linear"})
    with pytest.raises(ModelBudgetError, match="no Linear layer but its head"):
        record_step(RunnableModel("model", model, parse([2, 4, 8])), {}, recipe)  # type: ignore[arg-type]
