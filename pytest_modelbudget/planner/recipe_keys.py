"""Recipes as they are written: what each key takes, what is wrong with a value, and its JSON schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from pytest_modelbudget.errors import ModelBudgetError, did_you_mean
from pytest_modelbudget.planner.recipe import (
    LORA_TARGETS,
    OPTIMIZERS,
    AnyRecipe,
    CachePrecision,
    Compile,
    Engine,
    Inference,
    Kernels,
    Precision,
    Serving,
    ServingPrecision,
    Training,
    ZeroGrad,
)

RecipeType = type[Training] | type[Inference] | type[Serving]


def parse(section: Any, kind: RecipeType) -> AnyRecipe:
    """Read a `training:`, `inference:` or `serving:` section of a manifest.

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
    return kind(**{name: _checked_value(title, key_of(kind, name), name, value) for name, value in section.items()})


def key_of(kind: RecipeType, name: str) -> Key:
    """How the key `name` of a kind of recipe is written."""
    return SERVING_KEYS[name] if kind is Serving and name in SERVING_KEYS else KEYS[name]


def _checked_value(title: str, key: Key, name: str, value: Any) -> Any:
    problem, parsed = key.read(value)
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
"""The keys of all kinds of recipes."""

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
}
"""The keys of `serving`, which takes other values for some that the others have too."""
