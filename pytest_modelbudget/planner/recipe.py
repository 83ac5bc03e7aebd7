"""What is to be run: one training step, or one forward pass without gradients, as users write it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.fp8 import fp8_text
from pytest_modelbudget.planner.lora import lora_text
from pytest_modelbudget.planner.pipeline import pipeline_text

Precision = Literal["fp32", "bf16", "fp16", "fp16-mixed", "bf16-mixed"]
Compile = Literal["auto", "none", "xla", "inductor"]
BLOCKS_COMPILED = {"inductor": "blocks"}
"""What `compile` says where repeated blocks are compiled, each by itself."""

ZeroGrad = Literal["before", "before-backward", "after", "never"]
Outputs = Literal["kept", "until-step", "dropped"]
LoopName = Literal["torch", "hf-trainer", "lightning", "torchtitan", "nanogpt"]
Kernels = Literal["cuda", "cpu", "cpu-avx2"]
Engine = Literal["paged", "contiguous"]
ServingPrecision = Literal["fp32", "bf16", "fp16", "fp8"]
CachePrecision = Literal["auto", "fp32", "bf16", "fp16", "fp8", "int8"]
Casts = Literal["autocast", "policy", "both"]
"""What casts in a mixed precision where FSDP2 shards: autocast, its own policy, or the one inside the other."""

Rotate = Literal["allgather", "alltoall"]
"""How keys and values of attention come from the other ranks of a sequence: all at once, or one rank's at a time."""

Routing = Literal["balanced", "one-rank"]
"""How many tokens the experts of one of several ranks get: as many as those of any other, or all there are."""

KERAS_OPTIMIZERS = ("adadelta", "adamax", "ftrl", "lamb", "lion", "nadam")
"""Optimizers known by name for Keras models; JAX models have all but `ftrl`, torch models all but `ftrl` and `lamb`."""

OPTAX_OPTIMIZERS = ("novograd",)
"""Optimizers that are known by name for JAX models alone."""

BITSANDBYTES_OPTIMIZERS = (
    "adam-8bit", "adamw-8bit", "lion-8bit", "ademamix-8bit", "paged-adam-8bit", "paged-adamw-8bit", "paged-lion-8bit",
    "paged-ademamix-8bit", "paged-adam", "paged-adamw", "paged-lion", "paged-ademamix", "ademamix",
)  # fmt: skip
"""Optimizers of bitsandbytes: with states of a byte (`-8bit`) or of float32, in unified memory (`paged-`) or not."""

TORCH_OPTIMIZERS = (
    "radam", "rprop", "asgd", *BITSANDBYTES_OPTIMIZERS, "adamw-4bit", "adam-mini", "adopt", "sophia", "galore",
    "apollo", "apollo-mini", "lomo",
)  # fmt: skip
"""Optimizers that are known by name for torch models alone."""

OPTIMIZERS = (
    "adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor", "muon", *TORCH_OPTIMIZERS, "none", *KERAS_OPTIMIZERS,
    *OPTAX_OPTIMIZERS,
)  # fmt: skip
"""Optimizers known by name; any other is `module:callable`, called with the parameters."""

OFFLOADED = ("optimizer", "gradients", "activations", "params")
"""What `offload` can keep on the host."""

LANGUAGE_LOSSES = ("liger", "cce", "chunked", "linear_cross_entropy")
"""Losses that take the place of a torch language model's head and cross entropy, without whole logits."""

SHARDING_DIMS = ("ddp", "zero1", "fsdp", "zero2", "fsdp1", "cp", "tp")
"""What a mapping of `sharding` counts ranks of, outermost first."""

SHARDING_TOGETHER = (("ddp", "fsdp", "cp", "tp"), ("ddp", "zero2", "cp", "tp"), ("zero1",), ("fsdp1",))
"""Which of them go together."""

SHARDING_OPTIONS = ("ep", "routing", "casts", "rotate")
"""What stands beside them."""

FULLY_SHARDED = frozenset({"fsdp", "zero2", "fsdp1"})
"""Which of them have a policy of their own for a mixed precision."""

ASSUMED = {"outputs": "kept", "zero_grad": "before"}
"""What a loop does that a recipe says nothing of."""

NameOrCallable = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Inference:
    """One forward pass in eval mode without gradients.

    `batch` and `dims` size the symbolic dimensions (None, {}: as the model is registered). `precision` casts the
    weights and floating inputs (`bf16`, `fp16`) or runs under autocast (`-mixed`). `kv_cache` is the number of tokens
    whose keys and values the model keeps while it generates, 0 for none; it needs a model that returns its cache.
    `offload` are globs over modules whose weights are on the host, and on the device while they run (accelerate's
    `device_map` with `cpu`).
    `steps` is `module:callable`, called with the models and the inputs instead of the model with the inputs.
    `kernels` says whose kernels run: a GPU's, those of a CPU with AVX-512, or of one with AVX2. `compile: xla` compiles
    the call of a JAX model for the CPU (`auto`: it is not compiled, and its peak not known); `inductor` estimates a
    torch model under torch.compile, `{inductor: blocks}` one whose repeated blocks are compiled.
    """

    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    precision: Precision = "fp32"
    kv_cache: int = 0
    offload: tuple[str, ...] = ()
    steps: NameOrCallable = "none"
    compile: Compile | Mapping[str, str] = "auto"
    kernels: Kernels = "cuda"


@dataclass(frozen=True, slots=True)
class Training:
    """One step of training: forward, loss, backward, optimizer; the second step is measured, its states are there.

    `optimizer` is one of `OPTIMIZERS` or `module:callable`, called with the list of trained parameters and
    `optimizer_options`. `in_backward` gives each parameter an optimizer of its own, which runs in the backward pass as
    soon as its gradient is there, and lets go of it (`register_post_accumulate_grad_hook`). `foreach` and `fused`
    choose its implementation (None: as torch does on the device). `offload` keeps on the host the `optimizer` (as
    torchao's `CPUOffloadOptimizer`, with `gradients` those too), `activations` (as torch's `save_on_cpu` around the
    forward pass) and, with `sharding: {fsdp: 8}` and alone, `params` (as its `CPUOffloadPolicy`). `ema` keeps an
    average of the weights on the device (`torch.optim.swa_utils.AveragedModel`), whose decay changes no size. `steps`
    is a step of several models, `module:callable`, called with the models, the inputs and, where it takes `optimizers`,
    those by the models' names; it calls `backward` and `step` itself.
    `precision`: weights as built (`fp32`), cast before (`bf16`, `fp16`), or autocast (`fp16-mixed` with a scaler,
    `bf16-mixed`). `fp8` beside it has linear layers multiply in 8 bits, as torchao converts them (see `Fp8`).
    `gradient_accumulation` is the number of forward and backward passes before the optimizer's step.
    `checkpointing` recomputes blocks: `none`, `blocks` (the repeated children of the model's lists), `{every: 2}` (the
    last of each two), `{save: [matmul, attention]}` (but for results of these operators), or `module:callable`, called
    with the model. `zero_grad` lets go of gradients before the forward pass, after the optimizer's step, or never.
    `loss` is `module:callable`, called with the model's result; by default the model's own `loss` where it returns
    one, `cross_entropy` of the last dimension of its first output against fitting targets when said so, else a
    gradient for every tensor of floats it returns (`none`); one of `LANGUAGE_LOSSES` takes the place of the model's
    head, too. `trainable` are globs over parameters (others are frozen), `lora` freezes all and adds low-rank pairs
    (`{rank: 8, targets: [q_proj, v_proj]}`), with `base` beside quantised weights (see `Lora`). `sharding` is
    `{fsdp: 8, tp: 2, ddp: 4}` (FSDP2, tensor parallelism, replicas), with `zero2` in place of `fsdp` where gathered
    parameters are kept until the backward pass, `{zero1: 8}` (replicas with torch's ZeroRedundancyOptimizer), `{fsdp1:
    8}` (FullyShardedDataParallel), or `module:callable`, called with the model and a function that makes the mesh
    (`mesh = make_mesh(dp=8, tp=2)`); `batch` and `dims` are those of one rank. `cp` ranks share every sequence, whose
    length is that of the whole, by torch's ring attention (`rotate: alltoall` as its option); they are more ranks of
    `fsdp`, `zero2` or `ddp`. Beside the ranks, `casts` says what a mixed precision is where FSDP shards: `autocast` as
    without sharding, FSDP's own `policy`, or `both`. With `no_sync` ranks exchange gradients in the last of the
    accumulated passes alone. `pipeline` is `{ranks: 4, schedule: 1f1b, microbatches: 8}`, stages of the model on as
    many ranks (see `Pipeline`), each stage shared by the ranks of `sharding` (`fsdp`, `zero2`, `tp`); `batch` is then
    that of all microbatches together, and the plan that of the rank with the highest peak. `compile` is `xla` or `none`
    for steps on TensorFlow (`auto`: as the model is compiled, by itself `none`); what `xla` takes is not known. For JAX
    models `xla` compiles the step for the CPU (`auto`: it is not compiled, and its peak not known). `inductor`
    estimates the step of a torch model under torch.compile, whose loss and optimizer run as they are; of `{inductor:
    blocks}` the repeated blocks are compiled, each by itself, and the rest of the model runs as it is.

    `outputs` says whether what the model returned is `kept` until the next pass returns, `until-step`, or `dropped`
    before the backward pass; `zero_grad` may also be `before-backward`. What these two do not say (None) is as in
    `loop`, one of `loops.LOOPS`, which decides more where it is named; without a name it is `torch`. The model's own
    `loss` is also the only number of several tensors that it returns, as in `return logits, loss`.
    """

    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    optimizer: NameOrCallable = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    in_backward: bool = False
    offload: tuple[str, ...] = ()
    ema: bool = False
    steps: NameOrCallable = "none"
    precision: Precision = "fp32"
    fp8: str | Mapping[str, Any] = "none"
    gradient_accumulation: int = 1
    checkpointing: NameOrCallable | Mapping[str, Any] = "none"
    foreach: bool | None = None
    fused: bool | None = None
    zero_grad: ZeroGrad | None = None
    loss: NameOrCallable = "auto"
    trainable: tuple[str, ...] = ()
    lora: Mapping[str, Any] = field(default_factory=dict)
    sharding: Mapping[str, int | str] | NameOrCallable | None = None
    no_sync: bool = False
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    compile: Compile | Mapping[str, str] = "auto"
    kernels: Kernels = "cuda"
    outputs: Outputs | None = None
    loop: LoopName | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine that serves a model: its weights, the cache of `requests` at once, the largest pass that it runs.

    Each request has `tokens`, prompt and answer together (None: as many as the model's own inputs have); `dims` size
    other symbolic dimensions. `engine`: `paged` keeps the cache in blocks of `block` tokens, `contiguous` as the model
    itself does. Prompts are read in chunks of at most `prefill` tokens. `precision` is that of weights and cache, with
    `fp8` of the matrices of the repeated blocks and of what is kept of each token, all else `bf16`; `cache_precision`
    is that of the cache alone (`auto`: the same). `tp` ranks share the model, `utilization` is the share of a device
    that the engine takes for itself. The engine's `sampler` draws the next tokens of so many requests at once (0: its
    memory is not counted).
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
    sampler: int = 0

    @property
    def batch(self) -> None:
        """The size of B is the number of requests in a pass, which the engine chooses."""
        return None


Recipe = Training | Inference
"""What one run of a model is recorded by."""

AnyRecipe = Recipe | Serving


def is_compiled(recipe: Recipe) -> bool:
    """Whether Inductor compiles the model, or its blocks."""
    return recipe.compile in ("inductor", BLOCKS_COMPILED)


def refuse_keys(recipe: Recipe, framework: str, planned: Collection[str], cures: Mapping[str, str]) -> None:
    """Refuse what a recipe says beside the `planned` keys, for models of a framework that has no meaning for it.

    Raises:
        ModelBudgetError: with the key, and what to do instead, by `cures`.
    """
    default, kind = type(recipe)(), "training" if isinstance(recipe, Training) else "inference"
    for key in (item.name for item in fields(recipe)):
        value = getattr(recipe, key)
        if key not in planned and value not in (getattr(default, key), ASSUMED.get(key)):
            cure = cures.get(key, "it is for torch models")
            raise ModelBudgetError(f"{kind}.{key}: {value} is not planned for {framework} models: {cure}")
    _refuse_torch_only(recipe, framework)


def _refuse_torch_only(recipe: Recipe, framework: str) -> None:
    """Refuse values that only torch models know: a loss that takes the place of a head, and torch's compiler.

    So are gradients that add up where no optimizer runs: with all others it is the optimizer that adds them up.

    Raises:
        ModelBudgetError: with the value, and what to write instead.
    """
    if is_compiled(recipe):
        kind = "training" if isinstance(recipe, Training) else "inference"
        raise ModelBudgetError(
            f"{kind}.compile: inductor is planned for torch models, not for {framework} models: write xla or none, or "
            "leave it out"
        )
    if isinstance(recipe, Training) and recipe.loss in LANGUAGE_LOSSES:
        raise ModelBudgetError(
            f"training.loss: {recipe.loss} is planned for torch models, not for {framework} models: write "
            "cross_entropy or module:callable"
        )
    if isinstance(recipe, Training) and recipe.optimizer == "none" and recipe.gradient_accumulation > 1:
        raise ModelBudgetError(
            "training.gradient_accumulation: the optimizer adds up the gradients of passes, and optimizer: none has "
            f"none for {framework} models: leave the key out, or name an optimizer"
        )


def refuse_idle_no_sync(recipe: AnyRecipe) -> None:
    """Refuse a `no_sync` that changes nothing, since whoever writes it expects that it does.

    Raises:
        ModelBudgetError: no ranks exchange gradients, or there is one pass before a step; with what to write.
    """
    if not isinstance(recipe, Training) or not recipe.no_sync:
        return
    cure = "write it with sharding: {ddp: 8} (or fsdp, zero1 ...) and gradient_accumulation above 1, or leave it out"
    if recipe.sharding is None or (isinstance(recipe.sharding, Mapping) and set(recipe.sharding) <= {"tp", "casts"}):
        raise ModelBudgetError(f"training.no_sync: no ranks exchange gradients here, so it changes nothing: {cure}")
    if recipe.gradient_accumulation == 1:
        raise ModelBudgetError(
            f"training.no_sync: the only pass before a step exchanges its gradients in any case: {cure}"
        )


def describe(recipe: AnyRecipe, *, own_optimizer: bool = False) -> str:
    """A recipe in words, what is left at its default left out: `batch 32, adamw, bf16-mixed, checkpointing blocks`.

    For one model at one size, recipes in the same words have the same peak: growth against a base relies on it. A
    callable, which only code can give, is told by its name. With `own_optimizer` the model brings its optimizer.
    """
    return ", ".join(_words(recipe, own_optimizer))


def _words(recipe: AnyRecipe, own_optimizer: bool) -> Iterator[str]:
    if recipe.batch:
        yield f"batch {recipe.batch}"
    yield from (f"{name} {size}" for name, size in recipe.dims.items())
    if isinstance(recipe, Training):
        yield "the model's optimizer" if own_optimizer else _optimizer_text(recipe)
    yield recipe.precision
    default = type(recipe)()
    assumed = {} if getattr(recipe, "loop", None) else ASSUMED
    for name, text in _TEXTS.items():
        if (value := getattr(recipe, name, None)) not in (getattr(default, name, None), assumed.get(name)):
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


def _sharding_text(sharding: Mapping[str, int | str] | NameOrCallable) -> str:
    if isinstance(sharding, Mapping):
        ranks = " x ".join(f"{name} {size}" for name, size in sharding.items() if name not in SHARDING_OPTIONS)
        options = [f"{name} {sharding[name]}" for name in SHARDING_OPTIONS if name in sharding]
        return ", ".join([ranks, *options])  # a loop may cast otherwise
    return f"sharded by {_reference_name(sharding)}"


def _reference_name(reference: NameOrCallable) -> str:
    return reference if isinstance(reference, str) else getattr(reference, "__name__", type(reference).__name__)


_TEXTS: dict[str, Callable[[Any], str]] = {
    "kv_cache": lambda tokens: f"cache of {tokens} tokens",
    "foreach": lambda flag: f"foreach={flag}",
    "fused": lambda flag: f"fused={flag}",
    "in_backward": lambda flag: "optimizer in the backward pass",
    "steps": lambda function: f"steps of {_reference_name(function)}",
    "ema": lambda flag: "average of the weights",
    "offload": lambda parts: f"{' and '.join(parts)} on the host",
    "gradient_accumulation": lambda passes: f"{passes} accumulated passes",
    "fp8": fp8_text,
    "checkpointing": _checkpointing_text,
    "zero_grad": lambda when: f"zero_grad {when}",
    "loss": lambda loss: f"loss {_reference_name(loss)}",
    "lora": lora_text,
    "trainable": lambda globs: f"training {', '.join(globs)}",
    "sharding": _sharding_text,
    "no_sync": lambda _: "gradients exchanged in the last pass",
    "pipeline": pipeline_text,
    "compile": lambda compiler: "compile inductor, blocks" if compiler == BLOCKS_COMPILED else f"compile {compiler}",
    "kernels": lambda kernels: f"kernels {kernels}",
    "outputs": lambda fate: f"outputs {fate}",
    "loop": lambda name: f"loop {name}",
    "requests": lambda requests: f"{requests} requests",
    "tokens": lambda tokens: f"{tokens} tokens each",
    "engine": lambda engine: f"{engine} cache",
    "block": lambda tokens: f"blocks of {tokens}",
    "prefill": lambda tokens: f"prefill {tokens}",
    "cache_precision": lambda precision: f"{precision} cache",
    "tp": lambda ranks: f"tp {ranks}",
    "utilization": lambda share: f"utilization {share}",
    "sampler": lambda requests: f"sampler of {requests}",
}
"""What each key says where it is not at its default; a recipe's other keys come before these."""
