"""What is to be run: one training step, or one forward pass without gradients, as users write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.lora import lora_text

Precision = Literal["fp32", "bf16", "fp16", "fp16-mixed", "bf16-mixed"]
Compile = Literal["auto", "none", "xla"]
ZeroGrad = Literal["before", "after", "never"]
Kernels = Literal["cuda", "cpu", "cpu-avx2"]

KERAS_OPTIMIZERS = ("adadelta", "adamax", "ftrl", "lamb", "lion", "nadam")
"""Optimizers that are known by name for Keras models, and all but `ftrl` for JAX models, not for torch models."""

OPTAX_OPTIMIZERS = ("novograd",)
"""Optimizers that are known by name for JAX models alone."""

OPTIMIZERS = (
    "adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor", "muon", "adamw-8bit", "none", *KERAS_OPTIMIZERS,
    *OPTAX_OPTIMIZERS,
)  # fmt: skip
"""Optimizers known by name; any other is `module:callable`, called with the parameters."""

LANGUAGE_LOSSES = ("liger", "cce", "chunked", "linear_cross_entropy")
"""Losses that take the place of a torch language model's head and cross entropy, without whole logits."""

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
    `checkpointing` recomputes blocks: `none`, `blocks` (the repeated children of the model's lists), `{every: 2}` (the
    last of each two), `{save: [matmul, attention]}` (but for results of these operators), or `module:callable`, called
    with the model. `zero_grad` lets go of gradients before the forward pass, after the optimizer's step, or never.
    `loss` is `module:callable`, called with the model's result; by default the model's own `loss` where it returns
    one, `cross_entropy` of the last dimension of its first output against fitting targets when said so, else a
    gradient for every tensor of floats it returns (`none`); one of `LANGUAGE_LOSSES` takes the place of the model's
    head, too. `trainable` are globs over parameters (others are frozen), `lora` freezes all and adds low-rank pairs
    (`{rank: 8, targets: [q_proj, v_proj]}`), with `base` beside quantised weights (see `Lora`). `sharding` is
    `{fsdp: 8, tp: 2, ddp: 4}` or `module:callable`, called with the model and a function that makes the mesh (`mesh =
    make_mesh(dp=8, tp=2)`); `batch` and `dims` are those of one rank. `compile` is `xla` or `none` for steps on
    TensorFlow (`auto`: as the model is compiled, by itself `none`); what `xla` takes is not known.
    For JAX models `xla` compiles the step for the CPU (`auto`: it is not compiled, and its peak not known).
    """

    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    optimizer: NameOrCallable = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    gradient_accumulation: int = 1
    checkpointing: NameOrCallable | Mapping[str, Any] = "none"
    foreach: bool | None = None
    fused: bool | None = None
    zero_grad: ZeroGrad = "before"
    loss: NameOrCallable = "auto"
    trainable: tuple[str, ...] = ()
    lora: Mapping[str, Any] = field(default_factory=dict)
    sharding: Mapping[str, int] | NameOrCallable | None = None
    compile: Compile = "auto"
    kernels: Kernels = "cuda"


Recipe = Training | Inference


def refuse_language_loss(recipe: Recipe, framework: str) -> None:
    """Refuse a loss that takes the place of a head, for models whose head is not found.

    Raises:
        ModelBudgetError: with the loss, and what to write instead.
    """
    if isinstance(recipe, Training) and recipe.loss in LANGUAGE_LOSSES:
        raise ModelBudgetError(
            f"training.loss: {recipe.loss} is planned for torch models, not for {framework} models: write "
            "cross_entropy or module:callable"
        )


def describe(recipe: Recipe) -> str:
    """A recipe in words, what is left at its default left out: `batch 32, adamw, bf16-mixed, checkpointing blocks`.

    For one model at one size, recipes in the same words have the same peak: growth against a base relies on it. A
    callable, which only code can give, is told by its name.
    """
    return ", ".join(_words(recipe))


def _words(recipe: Recipe) -> Iterator[str]:
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


def _checkpointing_text(checkpointing: NameOrCallable | Mapping[str, Any]) -> str:
    if not isinstance(checkpointing, Mapping):
        return f"checkpointing {_reference_name(checkpointing)}"
    every, save = checkpointing.get("every", 1), checkpointing.get("save", ())
    blocks = "blocks" if every == 1 else f"every {every} blocks"
    names = [save] if isinstance(save, str) else save
    return f"checkpointing {blocks}" + (f", saving {' and '.join(names)}" if names else "")


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
    "checkpointing": _checkpointing_text,
    "zero_grad": lambda when: f"zero_grad {when}",
    "loss": lambda loss: f"loss {_reference_name(loss)}",
    "lora": lora_text,
    "trainable": lambda globs: f"training {', '.join(globs)}",
    "sharding": _sharding_text,
    "compile": lambda compiler: f"compile {compiler}",
    "kernels": lambda kernels: f"kernels {kernels}",
}
"""What each key says where it is not at its default; a recipe's other keys come before these."""
