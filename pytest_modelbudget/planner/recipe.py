"""What is to be run: one training step, or one forward pass without gradients, as users write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from pytest_modelbudget.errors import ModelBudgetError, did_you_mean

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


Recipe = Training | Inference


def parse(section: Any, kind: type[Training] | type[Inference]) -> Recipe:
    """Read a `training:` or `inference:` section of a manifest.

    Raises:
        ModelBudgetError: an unknown key or a value that is none, naming the key and what is allowed.
    """
    title = kind.__name__.lower()
    if section is True or section is None:
        section = {}
    if not isinstance(section, Mapping):
        raise ModelBudgetError(f"{title}: write a mapping of {', '.join(f.name for f in fields(kind))}")
    keys = {f.name for f in fields(kind)}
    for name in section:
        if name not in keys:
            hint = did_you_mean(name, keys)
            raise ModelBudgetError(f"{title}: unknown key {name!r}{hint}; known are {', '.join(sorted(keys))}")
    return kind(**{name: _checked_value(title, name, value) for name, value in section.items()})


def _checked_value(title: str, name: str, value: Any) -> Any:
    problem, parsed = KEYS[name].read(value)
    if problem:
        raise ModelBudgetError(f"{title}.{name}: {problem}, not {value!r}")
    return parsed


@dataclass(frozen=True, slots=True)
class Key:
    """How a key of a recipe is written: `read` gives what is wrong with a value (empty: nothing), and what it means.

    `schema` is the same as a JSON schema, `meaning` a line for people who write it.
    """

    read: Callable[[Any], tuple[str, Any]]
    schema: Mapping[str, Any]
    meaning: str = ""


REFERENCE = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"}
"""The JSON schema of `module:callable`."""

SIZES = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}
"""The JSON schema of sizes by name."""


def _check_choice(*allowed: str) -> Key:
    mistake = f"write {', '.join(allowed[:-1])} or {allowed[-1]}"
    return Key(lambda value: ("" if value in allowed else mistake, value), {"enum": list(allowed)})


def _check_count(least: int, meaning: str) -> Key:
    mistake = f"write a whole number, at least {least}"
    schema = {"type": "integer", "minimum": least}
    return Key(lambda value: ("" if _is_count(value, least) else mistake, value), schema, meaning)


def _check_reference(*names: str) -> Key:
    mistake = f"write {', '.join(names)} or module:callable"
    schema = {"anyOf": [{"enum": list(names)}, REFERENCE]}
    return Key(lambda value: ("" if _is_reference(value, names) else mistake, value), schema)


def _check_flag() -> Key:
    return Key(lambda value: ("" if isinstance(value, bool) else "write true or false", value), {"type": "boolean"})


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_reference(value: Any, names: tuple[str, ...]) -> bool:
    return callable(value) or (isinstance(value, str) and (value in names or ":" in value))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and _is_count(v, 1) for k, v in value.items())


def _check_sizes(value: Any) -> tuple[str, Any]:
    return ("" if _are_sizes(value) else "write a mapping of names to whole numbers, such as {T: 2048}"), value


def _check_globs(value: Any) -> tuple[str, Any]:
    items = [value] if isinstance(value, str) else value
    valid = isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items)
    return ("" if valid else "write a list of globs over parameters' names"), tuple(items) if valid else ()


def _check_mapping(value: Any) -> tuple[str, Any]:
    return ("" if isinstance(value, Mapping) else "write a mapping"), value


def _check_lora(value: Any) -> tuple[str, Any]:
    valid = isinstance(value, Mapping) and set(value) <= {"rank", "targets"} and _is_count(value.get("rank"), 1)
    targets = value.get("targets", LORA_TARGETS) if valid else ()
    valid = isinstance(targets, list | tuple) and bool(targets) and all(isinstance(target, str) for target in targets)
    return ("" if valid else "write {rank: 8, targets: [q_proj, v_proj]}"), value


def _check_sharding(value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        valid = bool(value) and set(value) <= {"fsdp", "tp", "ddp"} and _are_sizes(value)
        return ("" if valid else "write {fsdp: 8, tp: 2, ddp: 4}, each a number of ranks"), value
    valid = _is_reference(value, ("none",))
    return ("" if valid else "write none or module:callable"), None if value == "none" else value


def _check_compile(value: Any) -> tuple[str, Any]:
    if value in (False, "no", "none"):
        return "", "none"
    return ("" if value in ("auto", "xla") else "compiled training is not planned: write auto, none or xla"), value


_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_SHARDING = {"anyOf": [SIZES, {"const": "none"}, REFERENCE]}

KEYS: dict[str, Key] = {
    "batch": _check_count(1, "size of the dimension B"),
    "dims": Key(_check_sizes, SIZES, "sizes of other dimensions: {T: 2048}"),
    "optimizer": _check_reference(*OPTIMIZERS),
    "optimizer_options": Key(_check_mapping, {"type": "object"}, "what the optimizer is called with: {momentum: 0.9}"),
    "precision": _check_choice(*get_args(Precision)),
    "gradient_accumulation": _check_count(1, "passes before a step of the optimizer"),
    "checkpointing": _check_reference("none", "blocks"),
    "foreach": _check_flag(),
    "fused": _check_flag(),
    "zero_grad": _check_choice(*get_args(ZeroGrad)),
    "loss": _check_reference("auto", "cross_entropy", "none"),
    "trainable": Key(_check_globs, _TEXTS, "globs over the parameters that are trained, all others are frozen"),
    "lora": Key(_check_lora, {"type": "object"}, "{rank: 8, targets: [q_proj, v_proj]}"),
    "sharding": Key(_check_sharding, _SHARDING, "{fsdp: 8, tp: 2, ddp: 4}, or what wraps it"),
    "compile": Key(_check_compile, {"enum": [False, *get_args(Compile)]}, "xla or none, for TensorFlow and JAX"),
    "kv_cache": _check_count(0, "tokens whose keys and values are kept"),
    "kernels": _check_choice(*get_args(Kernels)),
}
"""The keys of both kinds of recipes."""


def describe(recipe: Recipe) -> str:
    """A recipe in words, what is left at its default left out: `batch 32, adamw, bf16-mixed, checkpointing blocks`.

    For one model at one size, recipes in the same words have the same peak: growth against a base relies on it. A
    callable, which only code can give, is told by its name.
    """
    parts = [f"batch {recipe.batch}"] if recipe.batch else []
    parts += [f"{name} {size}" for name, size in recipe.dims.items()]
    if isinstance(recipe, Inference):
        cache = [f"cache of {recipe.kv_cache} tokens"] if recipe.kv_cache else []
        return ", ".join([*parts, recipe.precision, *cache, *_compile_text(recipe), *_kernels_text(recipe)])
    options = ", ".join(f"{name}={value}" for name, value in sorted(recipe.optimizer_options.items()))
    parts += [_reference_name(recipe.optimizer) + (f" ({options})" if options else ""), recipe.precision]
    parts += [f"{name}={getattr(recipe, name)}" for name in ("foreach", "fused") if getattr(recipe, name) is not None]
    if recipe.gradient_accumulation > 1:
        parts.append(f"{recipe.gradient_accumulation} accumulated passes")
    if recipe.checkpointing != "none":
        parts.append(f"checkpointing {_reference_name(recipe.checkpointing)}")
    if recipe.zero_grad != "before":
        parts.append(f"zero_grad {recipe.zero_grad}")
    if recipe.loss != "auto":
        parts.append(f"loss {_reference_name(recipe.loss)}")
    if recipe.lora:
        parts.append(f"LoRA of rank {recipe.lora['rank']} on {', '.join(recipe.lora.get('targets', LORA_TARGETS))}")
    if recipe.trainable:
        parts.append(f"training {', '.join(recipe.trainable)}")
    if isinstance(recipe.sharding, Mapping):
        parts.append(" x ".join(f"{name} {size}" for name, size in recipe.sharding.items()))
    elif recipe.sharding is not None:
        parts.append(f"sharded by {_reference_name(recipe.sharding)}")
    return ", ".join([*parts, *_compile_text(recipe), *_kernels_text(recipe)])


def _compile_text(recipe: Recipe) -> list[str]:
    return [] if recipe.compile == "auto" else [f"compile {recipe.compile}"]


def _kernels_text(recipe: Recipe) -> list[str]:
    return [] if recipe.kernels == "cuda" else [f"kernels {recipe.kernels}"]


def _reference_name(reference: NameOrCallable) -> str:
    return reference if isinstance(reference, str) else getattr(reference, "__name__", type(reference).__name__)
