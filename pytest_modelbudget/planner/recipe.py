"""What is to be run: one training step, or one forward pass without gradients, as users write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16", "fp16-mixed", "bf16-mixed"]
Compile = Literal["auto", "none", "xla"]
ZeroGrad = Literal["before", "after", "never"]
Kernels = Literal["cuda", "cpu", "cpu-avx2"]
Engine = Literal["paged", "contiguous"]
ServingPrecision = Literal["fp32", "bf16", "fp16", "fp8"]
CachePrecision = Literal["auto", "fp32", "bf16", "fp16", "fp8"]

KERAS_OPTIMIZERS = ("adadelta", "adamax", "ftrl", "lamb", "lion", "nadam")
"""Optimizers that are known by name for Keras models, and all but `ftrl` for JAX models, not for torch models."""

OPTAX_OPTIMIZERS = ("novograd",)
"""Optimizers that are known by name for JAX models alone."""

OPTIMIZERS = (
    "adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor", "muon", "adamw-8bit", "none", *KERAS_OPTIMIZERS,
    *OPTAX_OPTIMIZERS,
)  # fmt: skip
"""Optimizers known by name; any other is `module:callable`, called with the parameters."""

LORA_TARGETS = ("q_proj", "v_proj")
"""Layers that get adapters where `lora` names none."""

NameOrCallable = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Inference:
    """One forward pass in eval mode without gradients.

    `batch` and `dims` size the symbolic dimensions (None, {}: as the model is registered). `precision` casts the
    weights and floating inputs (`bf16`, `fp16`) or runs under autocast (`-mixed`). `kv_cache` is the number of tokens
    whose keys and values the model keeps while it generates, 0 for none; it needs a model that returns its cache.
    `kernels` says whose kernels run: a GPU's, those of a CPU with AVX-512, or of one with AVX2. `compile: xla` compiles
    the call of a JAX model for the CPU (`auto`: it is not compiled, and its peak not known).
    """

    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    precision: Precision = "fp32"
    kv_cache: int = 0
    compile: Compile = "auto"
    kernels: Kernels = "cuda"


@dataclass(frozen=True, slots=True)
class Training:
    """One step of training: forward, loss, backward, optimizer; the second step is measured, its states are there.

    `optimizer` is one of `OPTIMIZERS` or `module:callable`, called with the list of trained parameters and
    `optimizer_options`. `foreach` and `fused` choose its implementation (None: as torch does on the device).
    `precision`: weights as built (`fp32`), cast before (`bf16`, `fp16`), or autocast (`fp16-mixed` with a scaler,
    `bf16-mixed`). `gradient_accumulation` is the number of forward and backward passes before the optimizer's step.
    `checkpointing` recomputes blocks: `none`, `blocks` (the repeated children of the model's lists), or
    `module:callable`, called with the model. `zero_grad` lets go of gradients before the forward pass, after the
    optimizer's step, or never. `loss` is `module:callable`, called with the model's result; by default the model's own
    `loss` where it returns one, `cross_entropy` of the last dimension of its first output against fitting targets when
    said so, else a gradient for every tensor of floats it returns (`none`). `trainable` are globs over parameters
    (others are frozen), `lora` freezes all and adds low-rank pairs (`{rank: 8, targets: [q_proj, v_proj]}`). `sharding`
    is `{fsdp: 8, tp: 2, ddp: 4}` or `module:callable`, called with the model and a function that makes the mesh (`mesh
    = make_mesh(dp=8, tp=2)`); `batch` and `dims` are those of one rank. `compile` is `xla` or
    `none` for steps on TensorFlow (`auto`: as the model is compiled, by itself `none`); what `xla` takes is not known.
    For JAX models `xla` compiles the step for the CPU (`auto`: it is not compiled, and its peak not known).
    """

    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    optimizer: NameOrCallable = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    gradient_accumulation: int = 1
    checkpointing: NameOrCallable = "none"
    foreach: bool | None = None
    fused: bool | None = None
    zero_grad: ZeroGrad = "before"
    loss: NameOrCallable = "auto"
    trainable: tuple[str, ...] = ()
    lora: Mapping[str, Any] = field(default_factory=dict)
    sharding: Mapping[str, int] | NameOrCallable | None = None
    compile: Compile = "auto"
    kernels: Kernels = "cuda"


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine that serves a model: its weights, the cache of `requests` at once, the largest pass that it runs.

    Each request has `tokens`, prompt and answer together (None: as many as the model's own inputs have); `dims` size
    other symbolic dimensions. `engine`: `paged` keeps the cache in blocks of `block` tokens, `contiguous` as the model
    itself does. Prompts are read in chunks of at most `prefill` tokens. `precision` is that of weights and cache, with
    `fp8` of the matrices of the repeated blocks and of what is kept of each token, all else `bf16`; `cache_precision`
    is that of the cache alone (`auto`: the same). `tp` ranks share the model, `utilization` is the share of a device
    that the engine takes for itself.
    """

    dims: Mapping[str, int] = field(default_factory=dict)
    engine: Engine = "paged"
    tokens: int | None = None
    requests: int = 1
    block: int = 16
    prefill: int = 2048
    precision: ServingPrecision = "bf16"
    cache_precision: CachePrecision = "auto"
    tp: int = 1
    utilization: float = 0.9

    @property
    def batch(self) -> None:
        """The size of B is the number of requests in a pass, which the engine chooses."""
        return None


Recipe = Training | Inference
"""What one run of a model is recorded by."""

AnyRecipe = Recipe | Serving


def describe(recipe: AnyRecipe) -> str:
    """A recipe in words, what is left at its default left out: `batch 32, adamw, bf16-mixed, checkpointing blocks`.

    For one model at one size, recipes in the same words have the same peak: growth against a base relies on it. A
    callable, which only code can give, is told by its name.
    """
    return ", ".join(_words(recipe))


def _words(recipe: AnyRecipe) -> Iterator[str]:
    if recipe.batch:
        yield f"batch {recipe.batch}"
    yield from (f"{name} {size}" for name, size in recipe.dims.items())
    if isinstance(recipe, Training):
        yield _optimizer_text(recipe)
    yield recipe.precision
    default = type(recipe)()
    for name, text in _TEXTS.items():
        if (value := getattr(recipe, name, None)) != getattr(default, name, None):
            yield text(value)


def _optimizer_text(recipe: Training) -> str:
    options = ", ".join(f"{name}={value}" for name, value in sorted(recipe.optimizer_options.items()))
    return _reference_name(recipe.optimizer) + (f" ({options})" if options else "")


def _lora_text(lora: Mapping[str, Any]) -> str:
    return f"LoRA of rank {lora['rank']} on {', '.join(lora.get('targets', LORA_TARGETS))}"


def _sharding_text(sharding: Mapping[str, int] | NameOrCallable) -> str:
    if isinstance(sharding, Mapping):
        return " x ".join(f"{name} {size}" for name, size in sharding.items())
    return f"sharded by {_reference_name(sharding)}"


def _reference_name(reference: NameOrCallable) -> str:
    return reference if isinstance(reference, str) else getattr(reference, "__name__", type(reference).__name__)


_TEXTS: dict[str, Callable[[Any], str]] = {
    "kv_cache": lambda tokens: f"cache of {tokens} tokens",
    "foreach": lambda flag: f"foreach={flag}",
    "fused": lambda flag: f"fused={flag}",
    "gradient_accumulation": lambda passes: f"{passes} accumulated passes",
    "checkpointing": lambda blocks: f"checkpointing {_reference_name(blocks)}",
    "zero_grad": lambda when: f"zero_grad {when}",
    "loss": lambda loss: f"loss {_reference_name(loss)}",
    "lora": _lora_text,
    "trainable": lambda globs: f"training {', '.join(globs)}",
    "sharding": _sharding_text,
    "compile": lambda compiler: f"compile {compiler}",
    "kernels": lambda kernels: f"kernels {kernels}",
    "requests": lambda requests: f"{requests} requests",
    "tokens": lambda tokens: f"{tokens} tokens each",
    "engine": lambda engine: f"{engine} cache",
    "block": lambda tokens: f"blocks of {tokens}",
    "prefill": lambda tokens: f"prefill {tokens}",
    "cache_precision": lambda precision: f"{precision} cache",
    "tp": lambda ranks: f"tp {ranks}",
    "utilization": lambda share: f"utilization {share}",
}
"""What each key says where it is not at its default; a recipe's other keys come before these."""
