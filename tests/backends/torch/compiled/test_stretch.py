"""Plans of compiled models whose blocks repeat: captured without most of them, and equal to those of the whole capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.compiled import capture
from pytest_modelbudget.summary import Plan

pytestmark = pytest.mark.skipif(not compat.KNOWN_COMPILED, reason="graphs of this torch were not looked at")

WIDTH = 32
TOKENS = "int64[2, 16]"


class Block(nn.Module):
    """A perceptron beside a skip connection."""

    def __init__(self, hidden: int = 64, dropout: float = 0.0, index: int = 0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.dropout, self.index = nn.Dropout(dropout), index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Carrying(Block):
    """Gives a tuple: beside its result a state for the next block."""

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x, state = pair
        hidden = self.up(self.norm(x))
        state = state + hidden.sigmoid()
        return x + self.down(hidden * state), state


class Cache:
    """An object that is no pytree, as caches of transformers."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []


class Caching(Block):
    """Keeps in a cache what it makes, at its index."""

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:  # type: ignore[override]
        hidden = self.up(self.norm(x))
        cache.kept.insert(self.index, hidden)
        return x + self.down(nn.functional.gelu(hidden))


class Untrained(Block):
    """In one block a branch has no gradients: the same operators, and nothing saved."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.index != 4):
            branch = self.down(self.up(self.norm(x)))
        return x + branch


class Recomputed(Block):
    """Keeps its argument alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = checkpoint(super().forward, x, use_reentrant=False)
        return out


class Stack(nn.Module):
    """Blocks between a table and a product; `ends` says what is done beside."""

    def __init__(self, blocks: Sequence[nn.Module], ends: str = "", *, reads_floats: bool = False) -> None:
        super().__init__()
        self.first = (
            nn.Linear(WIDTH, WIDTH) if reads_floats else nn.Sequential(nn.Embedding(64, WIDTH), nn.Linear(WIDTH, WIDTH))
        )
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(WIDTH, 8)
        self.ends = ends

    def forward(self, x: torch.Tensor) -> Any:
        x = self.first(x)
        if self.ends == "carrying":
            state = (x, x.new_zeros(*x.shape[:-1], 64))
            for block in self.blocks:
                state = block(state)
            return self.head(state[0])
        if self.ends == "cached":
            cache = Cache()
            for block in self.blocks:
                x = block(x, cache)
            return self.head(x), cache
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        if self.ends == "all":
            return self.head(x), tuple(seen)
        if self.ends == "third":
            return self.head(x), seen[-3]
        if self.ends == "depth":
            x = x + x.new_ones(len(self.blocks), *x.shape).sum(0)
        return self.head(x)


def sharing(*owners: int) -> nn.Module:
    """Blocks of which all that follow the first owner share its weight, or two of them one."""
    blocks = [Block() for _ in range(8)]
    for block in blocks[1:] if len(owners) == 1 else [blocks[owners[1]]]:
        block.up.weight = blocks[owners[0]].up.weight
    return Stack(blocks)


def half_frozen() -> nn.Module:
    """Of twelve blocks the first six are not trained."""
    model = Stack([Block() for _ in range(12)])
    for module in (model.first, *list(model.blocks)[:6]):
        module.requires_grad_(False)
    return model


def encoder() -> nn.Module:
    """Torch's own layers, with nothing after the last."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 64, batch_first=True)
    return nn.Sequential(nn.Embedding(64, WIDTH), nn.TransformerEncoder(layer, 7, enable_nested_tensor=False))


def hugging_face(name: str, depth: int = 6, *, caches: bool = False, **shape: Any) -> Callable[[], nn.Module]:
    """A small model of transformers, of so many layers; it `caches` keys and values of each, as by itself, or not."""

    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        common = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": depth}
        config, model = {
            "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
            "llama": ("LlamaConfig", "LlamaForCausalLM"),
            "gemma": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
            "bert": ("BertConfig", "BertModel"),
            "vit": ("ViTConfig", "ViTModel"),
        }[name]
        if name == "gpt2":
            common = {"n_embd": WIDTH, "n_layer": depth, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**common, **shape))
        vars(built.config)["use_cache"] = caches
        return built

    return build


MASKED = {"input_ids": TOKENS, "attention_mask": TOKENS}
STACKS = {
    "blocks of which the last differs": (lambda: Stack([*[Block(dropout=0.1) for _ in range(6)], Block(96)]), TOKENS),
    "blocks of two kinds": (lambda: Stack([Block(64 + 32 * (index % 2)) for index in range(10)]), TOKENS),
    "blocks that give tuples": (lambda: Stack([Carrying() for _ in range(6)], "carrying"), TOKENS),
    "blocks that share a weight": (lambda: sharing(0), TOKENS),
    "half frozen": (half_frozen, TOKENS),
    "blocks that fill a cache": (lambda: Stack([Caching(index=index) for index in range(6)], "cached"), TOKENS),
    "an input that may be saved, or a view of it": (
        lambda: Stack([Untrained(index=index) for index in range(10)], reads_floats=True), f"float32[2, 16, {WIDTH}]",
    ),
}  # fmt: skip
SLOW = {
    "gpt2": (hugging_face("gpt2", vocab_size=64), TOKENS),
    "llama": (
        hugging_face("llama", vocab_size=64, num_key_value_heads=2, tie_word_embeddings=False), TOKENS,
    ),
    "gpt2 with its cache": (hugging_face("gpt2", caches=True, vocab_size=64), TOKENS),
    "llama with its cache": (hugging_face("llama", caches=True, vocab_size=64, num_key_value_heads=2), TOKENS),
    "llama with a tied head": (hugging_face("llama", vocab_size=64, tie_word_embeddings=True), TOKENS),
    "gemma": (
        hugging_face(
            "gemma", 10, vocab_size=64, num_key_value_heads=1, head_dim=16, sliding_window=8, sliding_window_pattern=2
        ),
        TOKENS,
    ),
    "bert": (hugging_face("bert", vocab_size=64), MASKED),
    "vit": (hugging_face("vit", image_size=32, patch_size=8), "float32[2, 3, 32, 32]"),
    "encoder": (encoder, TOKENS),
}  # fmt: skip
WHOLE = {
    "all are returned": (lambda: Stack([Block() for _ in range(6)], "all"), TOKENS),
    "all are kept, the last first": (lambda: Stack([Caching() for _ in range(6)], "cached"), TOKENS),
    "the last but two is returned": (lambda: Stack([Block() for _ in range(6)], "third"), TOKENS),
    "what follows knows the depth": (lambda: Stack([Block() for _ in range(6)], "depth"), TOKENS),
    "two share a weight": (lambda: sharing(2, 4), TOKENS),
    "blocks are recomputed": (lambda: Stack([Recomputed() for _ in range(6)]), TOKENS),
}


def some(cases: Mapping[str, Any], *fast: str) -> list[Any]:
    """The names of `cases`, of which all but these `fast` ones are slow."""
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in cases]


@pytest.fixture
def stretches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each model that is captured since, whether its graphs were stretched."""
    noted: list[bool] = []
    stretched = capture.CompiledModel._stretched

    def noting(model: capture.CompiledModel, *args: Any) -> Any:
        run = stretched(model, *args)
        noted.append(run is not None)
        return run

    monkeypatch.setattr(capture.CompiledModel, "_stretched", noting)
    return noted


def both(
    build: Callable[[], nn.Module], inputs: Any, monkeypatch: pytest.MonkeyPatch, **recipe: Any
) -> tuple[Plan, Plan]:
    """The plan as it is made, and that of the whole capture."""
    recipe = {kind: {"compile": "inductor", **options} for kind, options in recipe.items()}
    ours = plan(build, inputs, name="model", **recipe)
    with monkeypatch.context() as patch:
        patch.setattr(capture.CompiledModel, "_stretched", lambda *args: None)
        whole = plan(build, inputs, name="model", **recipe)
    assert whole.peak_bytes, whole.notes
    return ours, whole


@pytest.mark.parametrize("name", some(STACKS, "half frozen", "blocks that fill a cache"))
def test_a_plan_of_like_blocks_is_that_of_the_whole_capture(
    name: str, stretches: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In peak, parts, rows by module and phases; what makes it was captured without most blocks."""
    ours, whole = both(*STACKS[name], monkeypatch, training={"optimizer": "sgd"})
    assert ours == whole
    assert stretches == [True]


@pytest.mark.parametrize("name", some(WHOLE, "what follows knows the depth"))
def test_what_is_not_alike_is_captured_whole(name: str, stretches: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rest of the model looks into each block, or two of them are not as the others."""
    ours, whole = both(*WHOLE[name], monkeypatch, training={"optimizer": "sgd"})
    assert ours == whole
    assert stretches == [False]


@pytest.mark.slow
def test_a_block_without_gradients_is_not_like_its_neighbours(
    stretches: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it runs the same operators: those before and after it are two runs of like blocks."""
    build = lambda: Stack([Untrained(index=index) for index in range(10)])  # noqa: E731
    ours, whole = both(build, TOKENS, monkeypatch, training={"optimizer": "sgd"})
    assert ours == whole
    assert stretches == [True]


RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "fp32": {"training": {}},
    "bf16": {"training": {"precision": "bf16", "outputs": "dropped"}},
    "bf16-mixed": {"training": {"precision": "bf16-mixed", "gradient_accumulation": 3}},
    "lora": {"training": {"lora": {"rank": 4, "targets": "all-linear"}}},
    "cpu": {"training": {"precision": "bf16-mixed", "kernels": "cpu"}},
    "inference": {"inference": {"precision": "bf16-mixed"}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((name, "fp32") for name in SLOW), *(("gpt2", recipe) for recipe in RECIPES if recipe not in ("fp32", "lora")),
     *(("llama", recipe) for recipe in ("bf16-mixed", "lora", "inference")),
     *(("gpt2 with its cache", recipe) for recipe in ("bf16-mixed", "inference")), ("llama with its cache", "bf16")],
)  # fmt: skip
def test_a_plan_of_a_published_model_is_that_of_the_whole_capture(
    name: str, recipe: str, stretches: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With grouped heads, masks, sliding windows in every other layer, dropout, and no layer after the last."""
    ours, whole = both(*SLOW[name], monkeypatch, **RECIPES[recipe])
    assert ours == whole
    assert stretches  # more than one where torch imports a part of itself in the pass, which is recorded again
    assert all(stretches)
