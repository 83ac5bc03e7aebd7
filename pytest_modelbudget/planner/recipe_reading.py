"""Reads recipes as they are written; a key at a wrong place is told where it belongs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError, did_you_mean
from pytest_modelbudget.planner.recipe import SHARDING_DIMS, SHARDING_OPTIONS, AnyRecipe, Inference, Serving, Training
from pytest_modelbudget.planner.recipe_keys import Key, RecipeType, key_of

RECIPE_TYPES: dict[str, RecipeType] = {"training": Training, "inference": Inference, "serving": Serving}
"""The sections of recipes, by the key they are written under."""

Path = tuple[str, ...]
"""The keys that lead to a key: `("training", "pipeline", "ranks")`."""

_DEVICE_WORDS = ("device", "devices", "gpu", "fits")
_DEVICE_HINT = ", a device that the run must fit is a budget (budgets: {fits: RTX 4090}), or asked for with --device"

_ENGINE_FLAGS: Mapping[str, str] = {
    **dict.fromkeys(("max_model_len", "context_length", "max_seq_len", "ctx_size", "n_ctx"), "tokens"),
    **dict.fromkeys(("max_running_requests", "max_batch_size", "parallel"), "requests"),
    **dict.fromkeys(("max_num_batched_tokens", "chunked_prefill_size", "max_batch_prefill_tokens"), "prefill"),
    **dict.fromkeys(("gpu_memory_utilization", "mem_fraction_static", "cuda_memory_fraction"), "utilization"),
    **dict.fromkeys(("tensor_parallel_size", "tp_size", "num_shard"), "tp"),
    **dict.fromkeys(("kv_cache_dtype", "cache_type_k"), "cache_precision"),
    **dict.fromkeys(("block_size", "page_size", "tokens_per_block"), "block"),
    "max_num_seqs": "requests: ..., all of whose tokens are held, or for what is drawn at once sampler",
    "dtype": "precision",
}
"""Which key of `serving` says what a flag of vLLM, SGLang, TensorRT-LLM, TGI or llama.cpp does."""


_OTHER_WORDS: dict[Path, str] = {
    ("training", "sharding", "zero3"): "fsdp",
    ("training", "sharding", "hsdp"): "fsdp: 8, ddp: 2",
    ("training", "sharding", "pp"): "pipeline: {ranks: ...}, beside sharding",
}
"""What others call by a name that is no key here, and how it is written."""


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
            hint = _hint((title, name), keys)
            raise ModelBudgetError(f"{title}: unknown key {name!r}{hint}; known are {', '.join(sorted(keys))}")
    return kind(**{name: _checked_value(title, key_of(kind, name), name, value) for name, value in section.items()})


def _checked_value(title: str, key: Key, name: str, value: Any) -> Any:
    known_keys = _keys_below((title, name))
    for inner in value if known_keys and isinstance(value, Mapping) else ():
        hint = "" if inner in known_keys else _hint((title, name, inner), known_keys)
        if hint:
            raise ModelBudgetError(f"{title}.{name}: unknown key {inner!r}{hint}; known are {', '.join(known_keys)}")
    problem, parsed = key.read(value)
    if problem:
        raise ModelBudgetError(f"{title}.{name}: {problem}, not {value!r}")
    return parsed


def _hint(path: tuple[Any, ...], known_keys: Collection[str]) -> str:
    """What an unknown key of a recipe, or of a table in it, may be meant as; empty where nothing is near it."""
    title, name, *inner = path
    if not inner and name in _DEVICE_WORDS:
        return _DEVICE_HINT
    if not inner and title == "serving" and (key := _ENGINE_FLAGS.get(str(name).replace("-", "_"))):
        return f", which is {key}: ... here"
    if words := _OTHER_WORDS.get(path):
        return f", which is written as {words}"
    return place_hint(path) or did_you_mean(path[-1], known_keys)


def place_hint(path: tuple[Any, ...]) -> str:
    """`, which is written as pipeline: {microbatches: ...}` for an unknown key that is one elsewhere, else empty.

    `path` leads to it from the section on; the name alone is that of a key beside sections.
    """
    *around, name = path
    key_paths = [key_path for key_path in _places() if key_path[-1] == name]
    if not key_paths:
        return ""
    key_path = min(key_paths, key=lambda key_path: (key_path[:1] != tuple(around[:1]), len(key_path)))
    if len(around) > 1 and key_path[:-1] == tuple(around[:1]):
        return f", which is written beside {around[1]}"
    return f", which is written as {_nested(key_path[1:] if key_path[:1] == tuple(around[:1]) else key_path)}"


def _nested(path: Path) -> str:
    outermost, *below = path
    return f"{outermost}: {{{_nested(tuple(below))}}}" if below else f"{outermost}: ..."


@cache
def _places() -> tuple[Path, ...]:
    """Where each key of all kinds of recipes is written."""
    return tuple(path for title, kind in RECIPE_TYPES.items() for path in _paths_of(title, kind))


def _paths_of(title: str, kind: RecipeType) -> Iterator[Path]:
    for recipe_field in fields(kind):
        path = title, recipe_field.name
        yield path
        if recipe_field.name == "sharding":  # whose schema takes any dimension with a number of ranks
            yield from ((*path, name) for name in (*SHARDING_DIMS, *SHARDING_OPTIONS))
        else:
            yield from _paths_below(path, key_of(kind, recipe_field.name).schema)


def _paths_below(path: Path, schema: Mapping[str, Any]) -> Iterator[Path]:
    for part in (schema, *schema.get("anyOf", ())):
        for name, inner in part.get("properties", {}).items():
            yield (*path, name)
            yield from _paths_below((*path, name), inner)


@cache
def _keys_below(path: Path) -> tuple[str, ...]:
    """The keys of a table, in order; empty where it takes any."""
    return tuple(dict.fromkeys(key_path[-1] for key_path in _places() if key_path[:-1] == path))
