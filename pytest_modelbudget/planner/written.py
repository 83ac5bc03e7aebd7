"""Recipes as users write them, before they are read: several levels of a manifest make one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.recipe import Inference, Recipe, Training, parse

KINDS: dict[str, type[Training] | type[Inference]] = {"training": Training, "inference": Inference}
"""The sections of recipes, by the key they are written under."""

Written = Mapping[str, Any] | bool | None
"""A section: its keys; True for all defaults, False for no run of this kind, None where nothing is said."""


def read(title: str, written: object) -> Written:
    """A section as it may stay: checked, and a `Recipe` as the keys that make it.

    Raises:
        ModelBudgetError: an unknown key or a bad value.
    """
    if written is None or isinstance(written, bool):
        return {} if written is True else written
    kind = KINDS[title]
    if isinstance(written, (Training, Inference)):
        if not isinstance(written, kind):
            raise ModelBudgetError(f"{title}: this is a recipe of the other kind: {type(written).__name__}")
        default = kind()
        values = {one.name: getattr(written, one.name) for one in fields(written)}
        written = {name: value for name, value in values.items() if value != getattr(default, name)}
    if not isinstance(written, Mapping):
        raise ModelBudgetError(f"{title}: write a mapping of its keys, {title}: {{batch: 32}}, or true or false")
    _parsed(title, written)
    return written


def mistakes(title: str, written: object) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each mistake of a section, with the keys below it that lead there; see `read`."""
    if not isinstance(written, Mapping):
        parts: Mapping[tuple[str, ...], object] = {(): written}
    else:
        parts = {(str(name),): {name: value} for name, value in written.items()}
    for keys, part in parts.items():
        try:
            read(title, part)
        except ModelBudgetError as mistake:
            yield keys, str(mistake)


def merge(*levels: Written) -> Written:
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
        before = merged or {}
        merged = {**before, **level}
        if "dims" in before and isinstance(level.get("dims"), Mapping):
            merged["dims"] = {**before["dims"], **level["dims"]}
    return None if merged is None else {name: value for name, value in merged.items() if value is not None}


def recipe(title: str, written: Written) -> Recipe | None:
    """The recipe of a section; None when there is none."""
    if written is None or written is False:
        return None
    return _parsed(title, {} if written is True else written)


def _parsed(title: str, written: Mapping[str, Any]) -> Recipe:
    """The recipe, keys of None being as if they were not there, provided that there are such keys."""
    kind = KINDS[title]
    known = {one.name for one in fields(kind)}
    return parse({name: value for name, value in written.items() if value is not None or name not in known}, kind)
