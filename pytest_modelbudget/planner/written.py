"""Recipes as users write them, before they are read: several levels of a manifest make one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Any

import yaml

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.recipe import AnyRecipe, Inference, Serving, Training
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES, parse

RecipeSection = Mapping[str, Any] | bool | None
"""A section: its keys; True for all defaults, False for no run of this kind, None where nothing is said."""


def read(title: str, section: object) -> RecipeSection:
    """A section as it may stay: checked, and a `Recipe` as the keys that make it.

    Raises:
        ModelBudgetError: an unknown key or a bad value.
    """
    if section is None or isinstance(section, bool):
        return {} if section is True else section
    kind = RECIPE_TYPES[title]
    if isinstance(section, (Training, Inference, Serving)):
        if not isinstance(section, kind):
            raise ModelBudgetError(f"{title}: this is a recipe of another kind: {type(section).__name__}")
        default = kind()
        values = {recipe_field.name: getattr(section, recipe_field.name) for recipe_field in fields(section)}
        section = {name: value for name, value in values.items() if value != getattr(default, name)}
    if not isinstance(section, Mapping):
        raise ModelBudgetError(f"{title}: write a mapping of its keys, {title}: {{batch: 32}}, or true or false")
    _parse_without_none(title, section)
    return section


def recipe_text(recipe: AnyRecipe) -> str:
    """A recipe as one line of a manifest, that is read back as the same recipe: `training: {batch: 8, fused: true}`.

    Callables, which only code can give, are left out.
    """
    title = next(name for name, kind in RECIPE_TYPES.items() if isinstance(recipe, kind))
    section = {name: value for name, value in (read(title, recipe) or {}).items() if not callable(value)}  # type: ignore[union-attr]
    return f"{title}: {flow_text(section)}"


class _Flow(yaml.SafeDumper):
    """Writes floats without an exponent: manifests read those as text."""


_Flow.add_representer(
    float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", f"{Decimal(repr(value)):f}")
)


def flow_text(value: Any) -> str:
    """A value of a recipe in YAML on one line: `{fsdp: 8}`."""
    plain = {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value
    plain = list(plain) if isinstance(plain, tuple) else plain
    text = yaml.dump(plain, None, _Flow, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def mistakes(title: str, section: object) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each mistake of a section, with the keys below it that lead there; see `read`."""
    if not isinstance(section, Mapping):
        parts: Mapping[tuple[str, ...], object] = {(): section}
    else:
        parts = {(str(name),): {name: value} for name, value in section.items()}
    for keys, part in parts.items():
        try:
            read(title, part)
        except ModelBudgetError as mistake:
            yield keys, str(mistake)


def merge(*levels: RecipeSection) -> RecipeSection:
    """Later levels (more specific ones) replace earlier ones, key by key; `dims` name by name.

    A key of None falls back to what the recipe does by itself, and a level that is False takes the whole away.
    """
    merged: dict[str, Any] | None = None
    for level in levels:
        if level is None:
            continue
        if isinstance(level, bool):
            merged = {} if level else None
            continue
        previous = merged or {}
        merged = {**previous, **level}
        if "dims" in previous and isinstance(level.get("dims"), Mapping):
            merged["dims"] = {**previous["dims"], **level["dims"]}
    return None if merged is None else {name: value for name, value in merged.items() if value is not None}


def recipe(title: str, section: RecipeSection) -> AnyRecipe | None:
    """The recipe of a section; None when there is none."""
    if section is None or section is False:
        return None
    return _parse_without_none(title, {} if section is True else section)


def _parse_without_none(title: str, section: Mapping[str, Any]) -> AnyRecipe:
    """The recipe, keys of None being as if they were not there, provided that there are such keys."""
    kind = RECIPE_TYPES[title]
    keys = {recipe_field.name for recipe_field in fields(kind)}
    return parse({name: value for name, value in section.items() if value is not None or name not in keys}, kind)
