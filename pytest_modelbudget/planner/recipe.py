"""What is to be run: one training step, or one forward pass without gradients, as users write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from pytest_modelbudget.errors import ModelBudgetError

Precision = Literal["fp32", "bf16", "fp16", "fp16-mixed", "bf16-mixed"]
ZeroGrad = Literal["before", "after", "never"]
Kernels = Literal["cuda", "cpu", "cpu-avx2"]

OPTIMIZERS = ("adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor", "muon", "adamw-8bit", "none")
"""Optimizers known by name; any other is `module:callable`, called with the parameters."""

LORA_TARGETS = ("q_proj", "v_proj")
"""Layers that get adapters where `lora` names none."""

Reference = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Inference:
    """One forward pass in eval mode without gradients.

    `batch` and `dims` size the symbolic dimensions (None, {}: as the model is registered). `precision` casts the
    weights and floating inputs (`bf16`, `fp16`) or runs under autocast (`-mixed`). `kv_cache` is the number of tokens
    whose keys and values the model keeps while it generates, 0 for none; it needs a model that returns its cache.
    `kernels` says whose kernels run: a GPU's, those of a CPU with AVX-512, or of one with AVX2.
    """

    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    precision: Precision = "fp32"
    kv_cache: int = 0
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
    = make_mesh(dp=8, tp=2)`); `batch` and `dims` are those of one rank. `compile` is not planned yet: only `False`.
    """

    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    optimizer: Reference = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    gradient_accumulation: int = 1
    checkpointing: Reference = "none"
    foreach: bool | None = None
    fused: bool | None = None
    zero_grad: ZeroGrad = "before"
    loss: Reference = "auto"
    trainable: tuple[str, ...] = ()
    lora: Mapping[str, Any] = field(default_factory=dict)
    sharding: Mapping[str, int] | Reference | None = None
    compile: bool = False
    kernels: Kernels = "cuda"


Recipe = Training | Inference


def parse(written: Any, kind: type[Training] | type[Inference]) -> Recipe:
    """Read a `training:` or `inference:` section of a manifest.

    Raises:
        ModelBudgetError: an unknown key or a value that is none, naming the key and what is allowed.
    """
    title = kind.__name__.lower()
    if written is True or written is None:
        written = {}
    if not isinstance(written, Mapping):
        raise ModelBudgetError(f"{title}: write a mapping of {', '.join(f.name for f in fields(kind))}")
    known = {f.name for f in fields(kind)}
    for name in written:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f", did you mean {near[0]!r}" if near else ""
            raise ModelBudgetError(f"{title}: unknown key {name!r}{hint}; known are {', '.join(sorted(known))}")
    return kind(**{name: _value(title, name, value) for name, value in written.items()})


def _value(title: str, name: str, value: Any) -> Any:
    check = _CHECKS[name]
    problem, read = check(value)
    if problem:
        raise ModelBudgetError(f"{title}.{name}: {problem}, not {value!r}")
    return read


def _choice(*allowed: str) -> Callable[[Any], tuple[str, Any]]:
    return lambda value: ("" if value in allowed else f"write {', '.join(allowed[:-1])} or {allowed[-1]}", value)


def _count(least: int) -> Callable[[Any], tuple[str, Any]]:
    def check(value: Any) -> tuple[str, Any]:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return ("" if good else f"write a whole number, at least {least}"), value

    return check


def _flag(value: Any) -> tuple[str, Any]:
    return ("" if isinstance(value, bool) else "write true or false"), value


def _sizes(value: Any) -> tuple[str, Any]:
    good = isinstance(value, Mapping) and all(isinstance(k, str) and _count(1)(v)[0] == "" for k, v in value.items())
    return ("" if good else "write a mapping of names to whole numbers, such as {T: 2048}"), value


def _reference(*names: str) -> Callable[[Any], tuple[str, Any]]:
    def check(value: Any) -> tuple[str, Any]:
        good = callable(value) or (isinstance(value, str) and (value in names or ":" in value))
        return ("" if good else f"write {', '.join(names)} or module:callable"), value

    return check


def _globs(value: Any) -> tuple[str, Any]:
    items = [value] if isinstance(value, str) else value
    good = isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items)
    return ("" if good else "write a list of globs over parameters' names"), tuple(items) if good else ()


def _mapping(value: Any) -> tuple[str, Any]:
    return ("" if isinstance(value, Mapping) else "write a mapping"), value


def _lora(value: Any) -> tuple[str, Any]:
    good = isinstance(value, Mapping) and set(value) <= {"rank", "targets"} and _count(1)(value.get("rank"))[0] == ""
    targets = value.get("targets", LORA_TARGETS) if good else ()
    good = isinstance(targets, list | tuple) and bool(targets) and all(isinstance(one, str) for one in targets)
    return ("" if good else "write {rank: 8, targets: [q_proj, v_proj]}"), value


def _sharding(value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        good = bool(value) and set(value) <= {"fsdp", "tp", "ddp"} and _sizes(value)[0] == ""
        return ("" if good else "write {fsdp: 8, tp: 2, ddp: 4}, each a number of ranks"), value
    return _reference("none")(value) if value != "none" else ("", None)


def _no_compile(value: Any) -> tuple[str, Any]:
    return ("" if value in (False, "no") else "compiled training is not planned: write false"), False


_CHECKS: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "batch": _count(1),
    "dims": _sizes,
    "optimizer": _reference(*OPTIMIZERS),
    "optimizer_options": _mapping,
    "precision": _choice(*get_args(Precision)),
    "gradient_accumulation": _count(1),
    "checkpointing": _reference("none", "blocks"),
    "foreach": _flag,
    "fused": _flag,
    "zero_grad": _choice(*get_args(ZeroGrad)),
    "loss": _reference("auto", "cross_entropy", "none"),
    "trainable": _globs,
    "lora": _lora,
    "sharding": _sharding,
    "compile": _no_compile,
    "kv_cache": _count(0),
    "kernels": _choice(*get_args(Kernels)),
}


def describe(recipe: Recipe) -> str:
    """A recipe in words, what is left at its default left out: `batch 32, adamw, bf16-mixed, checkpointing blocks`.

    For one model at one size, recipes in the same words have the same peak: growth against a base relies on it. A
    callable, which only code can give, is told by its name.
    """
    said = [f"batch {recipe.batch}"] if recipe.batch else []
    said += [f"{name} {size}" for name, size in recipe.dims.items()]
    if isinstance(recipe, Inference):
        cache = [f"cache of {recipe.kv_cache} tokens"] if recipe.kv_cache else []
        return ", ".join([*said, recipe.precision, *cache, *_on(recipe)])
    options = ", ".join(f"{name}={value}" for name, value in sorted(recipe.optimizer_options.items()))
    said += [_name(recipe.optimizer) + (f" ({options})" if options else ""), recipe.precision]
    said += [f"{name}={getattr(recipe, name)}" for name in ("foreach", "fused") if getattr(recipe, name) is not None]
    if recipe.gradient_accumulation > 1:
        said.append(f"{recipe.gradient_accumulation} accumulated passes")
    if recipe.checkpointing != "none":
        said.append(f"checkpointing {_name(recipe.checkpointing)}")
    if recipe.zero_grad != "before":
        said.append(f"zero_grad {recipe.zero_grad}")
    if recipe.loss != "auto":
        said.append(f"loss {_name(recipe.loss)}")
    if recipe.lora:
        said.append(f"LoRA of rank {recipe.lora['rank']} on {', '.join(recipe.lora.get('targets', LORA_TARGETS))}")
    if recipe.trainable:
        said.append(f"training {', '.join(recipe.trainable)}")
    if isinstance(recipe.sharding, Mapping):
        said.append(" x ".join(f"{name} {size}" for name, size in recipe.sharding.items()))
    elif recipe.sharding is not None:
        said.append(f"sharded by {_name(recipe.sharding)}")
    return ", ".join([*said, *_on(recipe)])


def _on(recipe: Recipe) -> list[str]:
    return [] if recipe.kernels == "cuda" else [f"kernels {recipe.kernels}"]


def _name(reference: Reference) -> str:
    return reference if isinstance(reference, str) else getattr(reference, "__name__", type(reference).__name__)
