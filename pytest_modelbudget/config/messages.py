"""What is wrong with a manifest, in words, and the keys it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pytest_modelbudget.config import schema
from pytest_modelbudget.errors import did_you_mean
from pytest_modelbudget.loading import Keys
from pytest_modelbudget.planner.recipe_reading import place_hint

_EXAMPLES = {"build": "module:callable", "models": '"glob*"'}


def keys_of_mistake(name: str, value: Any, mistake: str) -> Keys:
    """The keys under a section that a mistake is about, as far as it names them: `budgets.params.waive.until: ...`."""
    if name == "layers":
        return (name, *value) if isinstance(value, Mapping) else (name,)
    dotted = re.match(r"\w+\.([\w.]+)", mistake)
    keys = tuple(dotted[1].split(".")) if dotted else ()
    return keys if keys[:1] == (name,) else (name,)


def describe(problem: Any, shape: type[BaseModel], keys: Keys) -> str:
    path = ".".join(map(str, keys))
    match problem["type"]:
        case "extra_forbidden":
            return _unknown_key_text(str(problem["loc"][-1]), _known_keys(shape, problem["loc"][:-1]))
        case "missing":
            return f"{path} is missing: write {keys[-1]}: {_EXAMPLES.get(str(keys[-1]), '...')}"
        case "literal_error" if problem["loc"] == ("version",):
            return (
                f"version {problem['input']!r} is not known: this release reads version 1; upgrade pytest-modelbudget"
            )
        case "bool_type":
            return f"{path}: write true or false, not {problem['input']!r}"
        case _:
            return f"{path}: {problem['msg'].lower()}, got {problem['input']!r}"


def _known_keys(shape: type[BaseModel], keys: Keys) -> tuple[str, ...]:
    """The keys that are known where a mistake was made."""
    inner: dict[str, type[BaseModel]] = {"defaults": schema.Defaults, "tags": schema.Tag, "groups": schema.Group}
    if shape is schema.Manifest and keys and str(keys[0]) in inner:
        shape = inner[str(keys[0])]
    return tuple(shape.model_fields)


def _unknown_key_text(name: str, known_keys: tuple[str, ...]) -> str:
    hint = place_hint((name,)) if "training" in known_keys else ""
    return f"unknown key {name!r}{hint or did_you_mean(name, known_keys)}; known are {', '.join(known_keys)}"
