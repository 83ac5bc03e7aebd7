"""How recipes are written: what each key takes, what is wrong with a value, and its JSON schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pytest_modelbudget.errors import did_you_mean
from pytest_modelbudget.planner.checkpointing import CHECKPOINTING_SCHEMA, check_checkpointing
from pytest_modelbudget.planner.fp8 import FP8_SCHEMA, check_fp8
from pytest_modelbudget.planner.lora import LORA_SCHEMA, check_lora
from pytest_modelbudget.planner.options import Option, choice, count, flag, one_of
from pytest_modelbudget.planner.pipeline import PIPELINE_SCHEMA, check_pipeline
from pytest_modelbudget.planner.recipe import (
    BLOCKS_COMPILED,
    FULLY_SHARDED,
    LANGUAGE_LOSSES,
    OFFLOADED,
    OPTIMIZERS,
    SHARDING_DIMS,
    SHARDING_OPTIONS,
    SHARDING_TOGETHER,
    CachePrecision,
    Casts,
    Compile,
    Engine,
    Inference,
    Kernels,
    LoopName,
    Outputs,
    Precision,
    Rotate,
    Routing,
    Serving,
    ServingPrecision,
    Training,
    ZeroGrad,
)

RecipeType = type[Training] | type[Inference] | type[Serving]


def key_of(kind: RecipeType, name: str) -> Key:
    """How the key `name` of a kind of recipe is written."""
    own = {Serving: SERVING_KEYS, Inference: INFERENCE_KEYS}.get(kind, {})
    return own[name] if name in own else KEYS[name]


@dataclass(frozen=True, slots=True)
class Key:
    """How a key of a recipe is written: `read` gives what is wrong with a value (empty: nothing), and what it means.

    `schema` is the same as a JSON schema, `meaning` a line for people who write it.
    """

    read: Callable[[Any], tuple[str, Any]]
    schema: Mapping[str, Any]
    meaning: str = ""


_REFERENCE = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"
REFERENCE = {"type": "string", "pattern": _REFERENCE}
"""The JSON schema of `module:callable`."""

SIZES = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}
"""The JSON schema of sizes by name."""


def _key(option: Option, meaning: str = "") -> Key:
    """The key that takes what an option takes, as it is."""
    return Key(lambda value: ("" if option.is_valid(value) else option.mistake, value), option.schema, meaning)


def _check_choice(*allowed: str) -> Key:
    return _key(choice(*allowed))


def _check_count(least: int, meaning: str) -> Key:
    return _key(count(least), meaning)


def _check_reference(*names: str) -> Key:
    mistake = f"write {', '.join(names)} or module:callable"

    def read(value: Any) -> tuple[str, Any]:
        return ("" if _is_reference(value, names) else mistake + did_you_mean(value, names)), value

    return Key(read, {"anyOf": [{"enum": list(names)}, REFERENCE]})


def _check_flag() -> Key:
    return _key(flag())


def _check_tokens(meaning: str) -> Key:
    """A number of tokens; `32k` is the 32,768 of context lengths."""
    shape = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[1-9][0-9]*[kKM]$"}]}
    return Key(_read_tokens, shape, meaning)


def _read_tokens(value: Any) -> tuple[str, Any]:
    written = re.fullmatch(r"([1-9][0-9]{0,9})([kKM])", value) if isinstance(value, str) else None
    tokens = int(written[1]) * (2**20 if written[2] == "M" else 2**10) if written else value
    return ("" if _is_count(tokens, 1) else "write a whole number of tokens, at least 1, or 32k (of 1,024)"), tokens


def _check_share(meaning: str) -> Key:
    schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}

    def read(value: Any) -> tuple[str, Any]:
        valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
        return ("" if valid else "write a share above 0 and up to 1, such as 0.9"), value

    return Key(read, schema, meaning)


def _is_count(value: Any, least: int) -> bool:
    return count(least).is_valid(value)


def _is_reference(value: Any, names: tuple[str, ...]) -> bool:
    return callable(value) or (isinstance(value, str) and (value in names or bool(re.match(_REFERENCE, value))))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and _is_count(v, 1) for k, v in value.items())


def _check_sizes(value: Any) -> tuple[str, Any]:
    return ("" if _are_sizes(value) else "write a mapping of names to whole numbers, such as {T: 2048}"), value


def _check_globs(value: Any) -> tuple[str, Any]:
    items = [value] if isinstance(value, str) else value
    valid = isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items)
    return ("" if valid else "write a list of globs over parameters' names"), tuple(items) if valid else ()


def _check_ema(value: Any) -> tuple[str, Any]:
    valid = isinstance(value, bool) or (isinstance(value, float) and 0 < value < 1)
    return ("" if valid else "write true, false or a decay such as 0.999"), bool(value)


def _check_offload(value: Any) -> tuple[str, Any]:
    parts = [value] if isinstance(value, str) else value
    valid = isinstance(parts, (list, tuple)) and all(part in OFFLOADED for part in parts)
    hint = "; modules are named for inference alone" if isinstance(value, Mapping) else ""
    mistake = "" if valid else f"write a list of {', '.join(OFFLOADED)}{hint}"
    return mistake, tuple(sorted(set(parts))) if valid else ()


def _check_offloaded_modules(value: Any) -> tuple[str, Any]:
    """`[params]` is the whole model; a mapping names modules."""
    if value in (["params"], ("params",), "params"):
        return "", ("*",)
    globs = value.get("params") if isinstance(value, Mapping) and set(value) == {"params"} else None
    valid = isinstance(globs, (list, tuple)) and bool(globs) and all(isinstance(glob, str) for glob in globs)
    return ("" if valid else "write [params], or {params: [model.layers.2?]}, globs over modules"), tuple(globs or ())


def _check_mapping(value: Any) -> tuple[str, Any]:
    return ("" if isinstance(value, Mapping) else "write a mapping"), value


def _check_precision(value: Any) -> tuple[str, Any]:
    allowed = get_args(Precision)
    hint = "; training in fp8 is a key beside it: fp8: rowwise" if value == "fp8" else ""
    return ("" if value in allowed else one_of(allowed) + hint), value


def _check_blocks(value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        return check_checkpointing(value)
    mistake = "write none, blocks, {every: 2}, {save: [matmul, attention]} or module:callable"
    return ("" if _is_reference(value, ("none", "blocks")) else mistake), value


def _check_sharding(value: Any) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        ranks = {name: size for name, size in value.items() if name not in SHARDING_OPTIONS}
        if not ranks or not set(ranks) <= set(SHARDING_DIMS) or not _are_sizes(ranks):
            return f"write {{fsdp: 8, tp: 2, ddp: 4}}, numbers of ranks of {', '.join(SHARDING_DIMS)}", value
        if not any(set(ranks) <= set(dims) for dims in SHARDING_TOGETHER):
            return "fsdp or zero2 goes together with cp, tp and ddp, zero1 and fsdp1 with nothing", value
        if value.get("casts", "autocast") not in get_args(Casts):
            return f"casts is one of {', '.join(get_args(Casts))}", value
        if value.get("rotate", "allgather") not in get_args(Rotate) or ("rotate" in value and "cp" not in ranks):
            return f"rotate is one of {', '.join(get_args(Rotate))}, for cp", value
        if problem := _experts_problem(value):
            return problem, value
        by_fsdp = ("tp" in ranks and not {"ddp", "cp"}.isdisjoint(ranks)) or not FULLY_SHARDED.isdisjoint(ranks)
        return ("" if by_fsdp or "casts" not in value else "casts is for fsdp, which has a policy of its own"), value
    valid = _is_reference(value, ("none",))
    return ("" if valid else "write {fsdp: 8}, none or module:callable"), None if value == "none" else value


def _experts_problem(sharding: Mapping[str, Any]) -> str:
    """What is wrong with how experts are dealt out; empty: nothing."""
    ranks, fsdp = sharding.get("ep"), sharding.get("fsdp", 1)
    if ranks is None:
        return "routing is for ep, which deals experts out" if "routing" in sharding else ""
    if not _is_count(ranks, 2) or fsdp % ranks:
        return "ep is how many of the ranks of fsdp share the experts, a number above 1 that divides them"
    if not {"tp", "cp"}.isdisjoint(sharding):
        return "ep goes together with fsdp and ddp"
    if sharding.get("routing", "balanced") not in get_args(Routing):
        return f"routing is one of {', '.join(get_args(Routing))}"
    return ""


def _check_compile(value: Any) -> tuple[str, Any]:
    if value in (False, "no", "none"):
        return "", "none"
    valid = value in (*get_args(Compile), BLOCKS_COMPILED)
    return ("" if valid else "write auto, none, xla, inductor or {inductor: blocks}"), value


_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_OFFLOAD = {"type": "array", "items": {"enum": list(OFFLOADED)}, "uniqueItems": True}
_OFFLOADED_MODULES = {
    "type": "object",
    "required": ["params"],
    "properties": {"params": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
    "additionalProperties": False,
}
_DECAY = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_SHARDING_WORDS = {"casts": Casts, "rotate": Rotate, "routing": Routing}
_RANKS = {**SIZES, "properties": {name: {"enum": list(get_args(words))} for name, words in _SHARDING_WORDS.items()}}
_SHARDING = {"anyOf": [_RANKS, {"const": "none"}, REFERENCE]}
_PIPELINE = {"anyOf": [PIPELINE_SCHEMA, {"const": "none"}]}

KEYS: dict[str, Key] = {
    "batch": _check_count(1, "size of the dimension B"),
    "dims": Key(_check_sizes, SIZES, "sizes of other dimensions: {T: 2048}"),
    "optimizer": _check_reference(*OPTIMIZERS),
    "optimizer_options": Key(_check_mapping, {"type": "object"}, "what the optimizer is called with: {momentum: 0.9}"),
    "in_backward": _check_flag(),
    "steps": _check_reference("none"),
    "ema": Key(_check_ema, {"anyOf": [{"type": "boolean"}, _DECAY]}, "an average of the weights: true, or its decay"),
    "offload": Key(
        _check_offload, _OFFLOAD, "what is kept on the host: [optimizer, gradients, activations], or [params]"
    ),
    "precision": Key(_check_precision, {"enum": list(get_args(Precision))}),
    "fp8": Key(check_fp8, FP8_SCHEMA, "linear layers that multiply in 8 bits: rowwise, or {recipe: rowwise, skip: []}"),
    "gradient_accumulation": _check_count(1, "passes before a step of the optimizer"),
    "checkpointing": Key(_check_blocks, {"anyOf": [{"enum": ["none", "blocks"]}, CHECKPOINTING_SCHEMA, REFERENCE]}),
    "foreach": _check_flag(),
    "fused": _check_flag(),
    "zero_grad": _check_choice(*get_args(ZeroGrad)),
    "loss": _check_reference("auto", "cross_entropy", *LANGUAGE_LOSSES, "none"),
    "trainable": Key(_check_globs, _TEXTS, "globs over the parameters that are trained, all others are frozen"),
    "lora": Key(check_lora, LORA_SCHEMA, "{rank: 8, targets: [q_proj, v_proj], base: nf4}"),
    "sharding": Key(_check_sharding, _SHARDING, "{fsdp: 8, tp: 2, ddp: 4}, or what wraps it"),
    "no_sync": _check_flag(),
    "pipeline": Key(check_pipeline, _PIPELINE, "{ranks: 4, schedule: 1f1b, microbatches: 8}"),
    "compile": Key(
        _check_compile,
        {"enum": [False, *get_args(Compile), BLOCKS_COMPILED]},
        "xla, none; for torch inductor, or {inductor: blocks}",
    ),
    "kv_cache": _check_count(0, "tokens whose keys and values are kept"),
    "kernels": _check_choice(*get_args(Kernels)),
    "outputs": _check_choice(*get_args(Outputs)),
    "loop": _check_choice(*get_args(LoopName)),
}
"""The keys of all kinds of recipes."""

INFERENCE_KEYS: dict[str, Key] = {
    "offload": Key(
        _check_offloaded_modules,
        {"anyOf": [{"const": ["params"]}, _OFFLOADED_MODULES]},
        "weights that are on the host: [params], or those of modules, {params: [model.layers.2?]}",
    ),
}
"""The keys of `inference` that take other values than those of `training`."""

SERVING_KEYS: dict[str, Key] = {
    "dims": KEYS["dims"],
    "engine": _check_choice(*get_args(Engine)),
    "tokens": _check_tokens("tokens of each request, prompt and answer: 32k"),
    "requests": _check_count(1, "requests that are served at once"),
    "block": _check_count(1, "tokens of a block of the cache"),
    "prefill": _check_tokens("tokens of a prompt that are read at once, at most"),
    "precision": _check_choice(*get_args(ServingPrecision)),
    "cache_precision": _check_choice(*get_args(CachePrecision)),
    "tp": _check_count(1, "ranks that share the model"),
    "utilization": _check_share("the share of a device that the engine takes"),
    "sampler": _check_count(0, "requests whose next tokens are drawn at once"),
}
"""The keys of `serving`, which takes other values for some that the others have too."""
