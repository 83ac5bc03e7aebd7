"""`fp8` in a recipe: linear layers that multiply in 8 bits, as torchao converts them; how it is written and told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.planner.options import choice, flag, mistakes, names, one_of, schema_of

FP8_RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
"""Scales by torchao's names: one for a tensor, one for a row, or that with gradients of weights not in 8 bits."""


@dataclass(frozen=True, slots=True)
class Fp8:
    """Which layers are converted, and how: `recipe` is one of `FP8_RECIPES`.

    Layers whose names match a glob of `skip` are left as they are; by default (None) the head is. With `all_gather`
    FSDP2 gathers what is cast already.
    """

    recipe: str
    skip: tuple[str, ...] | None = None
    all_gather: bool = False

    @classmethod
    def of(cls, written: str | Mapping[str, Any]) -> Fp8 | None:
        """What `fp8: rowwise` or `fp8: {recipe: rowwise, skip: []}` says, which was checked before; None for none."""
        if isinstance(written, str):
            return None if written == "none" else cls(written)
        skip = written.get("skip")
        return cls(
            recipe=str(written.get("recipe", FP8_RECIPES[0])),
            skip=None if skip is None else tuple(skip),
            all_gather=bool(written.get("all_gather", False)),
        )


def fp8_text(written: str | Mapping[str, Any]) -> str:
    """What changes memory, in words: `fp8 rowwise, not *.router, gathered in fp8`."""
    fp8 = Fp8.of(written)
    assert fp8 is not None
    skipped = "" if fp8.skip is None else f", not {', '.join(fp8.skip)}" if fp8.skip else ", the head too"
    return f"fp8 {fp8.recipe}{skipped}" + (", gathered in fp8" if fp8.all_gather else "")


def check_fp8(value: Any) -> tuple[str, Any]:
    """What is wrong with a written `fp8` (empty: nothing), and the same."""
    if not isinstance(value, Mapping):
        return ("" if value in _WORDS else f"{one_of(_WORDS)}, or {_EXAMPLE}"), value
    if mistake := next(mistakes(value, _OPTIONS), ""):
        return mistake, value
    is_rowwise = value.get("all_gather", False) and value.get("recipe", FP8_RECIPES[0]) != FP8_RECIPES[0]
    return ("all_gather is for tensorwise: torchao gathers weights with one scale alone" if is_rowwise else ""), value


_WORDS = ("none", *FP8_RECIPES)
_EXAMPLE = "{recipe: rowwise, skip: [lm_head]}"
_OPTIONS = {
    "recipe": choice(*FP8_RECIPES),
    "skip": names("globs over layers' names", least=0),
    "all_gather": flag(),
}

FP8_SCHEMA: dict[str, Any] = {"anyOf": [{"enum": list(_WORDS)}, schema_of(_OPTIONS)]}
"""`fp8` as a JSON schema."""
