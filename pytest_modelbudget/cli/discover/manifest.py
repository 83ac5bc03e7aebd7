"""The text of a manifest with what was found: models with their limits, and skeletons of the others as comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

from pytest_modelbudget import units
from pytest_modelbudget.cli.discover.trial.outcomes import BuildableModel, Skeleton
from pytest_modelbudget.config import ITEM_NAMES
from pytest_modelbudget.system.escape import harmless

_SCALES: dict[units.Kind, tuple[tuple[int, str], ...]] = {
    "count": ((10**9, "B"), (10**6, "M"), (10**3, "k"), (1, "")),
    "bytes": ((10**9, " GB"), (10**6, " MB"), (10**3, " kB"), (1, " B")),
    "flops": ((10**12, " TFLOPs"), (10**9, " GFLOPs"), (10**6, " MFLOPs"), (10**3, " kFLOPs"), (1, " FLOPs")),
}

_GENERIC_NAMES = frozenset(
    f"{verb}{noun}" for verb in ("build", "create", "make", "get", "model", "net") for noun in ("", "-model", "-net")
)
_WIDTH = 100
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST = 4_000
_OPEN = "..."
"""Stands in a skeleton for an argument of which nothing is known."""


def by_id(models: Sequence[BuildableModel]) -> dict[str, BuildableModel]:
    """A short id for each: `tiny-cnn` for `nets:tiny_cnn` and `nets:TinyCNN`; with its module where two are alike."""
    short_ids = [_short_id(model.reference, model.variant) for model in models]
    models_by_id: dict[str, BuildableModel] = {}
    for name, model in zip(short_ids, models, strict=True):
        module = model.reference.partition(":")[0]
        unique = name if short_ids.count(name) == 1 and name not in ITEM_NAMES else f"{module}.{name}"
        names = (unique, model.reference, *(f"{model.reference}-{number}" for number in range(2, len(models) + 2)))
        models_by_id[next(name for name in names if name not in models_by_id)] = model
    return models_by_id


def _short_id(reference: str, variant: str) -> str:
    """The name in words; that of its module where the name says nothing, as in `gpt:build`, or its variant's."""
    module, _, name = reference.partition(":")
    name = name.partition(".")[0]
    id_words = _kebab_case(name)
    if id_words in _GENERIC_NAMES:
        return _kebab_case(variant or module.rpartition(".")[2])
    return f"{id_words}-{_kebab_case(variant)}" if variant else id_words


def _kebab_case(name: str) -> str:
    words = (
        re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z0-9]|[A-Z]{2,}(?![a-z]))|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
        .replace("_", "-")
        .lower()
    )
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "model"


def manifest_text(
    models_by_id: Mapping[str, BuildableModel], skeletons: Sequence[Skeleton], headroom: Fraction | int
) -> str:
    """The text of a manifest with these models, their limits `headroom` (a share) above what they have."""
    return "".join(f"{line}\n" for line in _manifest_lines(models_by_id, skeletons, headroom))


def _manifest_lines(
    models_by_id: Mapping[str, BuildableModel], skeletons: Sequence[Skeleton], headroom: Fraction | int
) -> Iterator[str]:
    yield f"# Written by modelbudget init. Limits are {units.percent(headroom)} above what was there, rounded up."
    yield "version: 1"
    yield "models:" if models_by_id else "models: {}"
    for name, model in models_by_id.items():
        yield from _model_lines(name, model, headroom)
    if skeletons:
        yield ""
        yield "# These build models too, and were not run: give them what they need, and take away the # before them."
        yield from _skeleton_lines(skeletons)


def _model_lines(name: str, model: BuildableModel, headroom: Fraction | int) -> Iterator[str]:
    yield f"  {name}:"
    yield f"    build: {model.reference}"
    note = "guesses: put the real ones here" if model.guessed else model.origin
    if model.guessed and "guessed" not in model.origin:
        note = f"{model.origin}, with {note}"
    if model.args:
        yield from _item_lines("args", model.args, note if model.origin else "")
    if model.kwargs:
        yield from _item_lines("kwargs", model.kwargs, "" if model.args or not model.origin else note)
    if model.inputs:
        note = model.origin if model.inputs_seen else "a guess that runs: put the real one here"
        yield from _item_lines("inputs", model.inputs, note)
    if model.dims:
        yield f"    dims: {{{', '.join(f'{dim}: {size}' for dim, size in model.dims.items())}}}"
    yield f"    budgets: {{{', '.join(_limit_texts(model, headroom))}}}"


def _item_lines(key: str, value: Any, note: str) -> Iterator[str]:
    """One key of a model, with a comment at its end or above what has a line for each of its items."""
    first, *rest = _block_lines(key, value, 4)
    yield f"{first}{f'  # {harmless(note)}' if note else ''}"
    yield from rest


def _block_lines(key: str, value: Any, indent: int) -> Iterator[str]:
    """`key: value` in one line where it fits, else a mapping with a line for each item."""
    head = f"{' ' * indent}{_key(key)}:"
    line = f"{head} {flow(value)}"
    if len(line) <= _WIDTH or not isinstance(value, dict):
        yield line
        return
    yield head
    for name, item in value.items():
        yield from _block_lines(name, item, indent + 2)


def flow(value: Any) -> str:
    """A value as YAML has it within a line, read back as it was."""
    match value:
        case dict():
            return f"{{{', '.join(f'{_key(name)}: {flow(item)}' for name, item in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(flow, value))}]"
        case float():
            return _decimal(value)
        case _:
            return json.dumps(value)


def _decimal(value: float) -> str:
    """Without an exponent, which would be read as text."""
    text = format(Decimal(repr(value)), "f")
    return text if "." in text else f"{text}.0"


def _key(name: object) -> str:
    text = str(name)
    return text if _PLAIN_KEY.fullmatch(text) and text.lower() not in ("true", "false", "null") else json.dumps(text)


def _skeleton_lines(skeletons: Sequence[Skeleton]) -> Iterator[str]:
    reasons = dict.fromkeys(skeleton.why for skeleton in skeletons)
    for why in reasons:
        yield "#"
        yield f"# {harmless(why)}"
        for skeleton in skeletons:
            if skeleton.why == why:
                yield from (f"# {line}" for line in _skeleton_entry(skeleton))


def _skeleton_entry(skeleton: Skeleton) -> Iterator[str]:
    kwargs = {**skeleton.kwargs, **dict.fromkeys(skeleton.unknown, ...)}
    written = [f"{_key(name)}: {_OPEN if item is ... else flow(item)}" for name, item in kwargs.items()]
    yield f" {_short_id(skeleton.reference, skeleton.variant)}:"
    yield f"   build: {harmless(skeleton.reference)}"
    if skeleton.args:
        yield f"   args: {flow(skeleton.args)}"
    if written:
        yield f"   kwargs: {{{harmless(', '.join(written), longest=_LONGEST)}}}"
    if skeleton.inputs:
        yield f"   inputs: {flow(skeleton.inputs)}"
    elif skeleton.why.startswith("runs on none"):
        yield f"   inputs: {_OPEN}"


def _limit_texts(model: BuildableModel, headroom: Fraction | int) -> Iterator[str]:
    kinds: tuple[tuple[str, units.Kind, int | None], ...] = (
        ("params", "count", model.params),
        ("weight_bytes", "bytes", model.weight_bytes),
        ("flops", "flops", model.flops),
    )
    for metric, kind, value in kinds:
        if value:
            yield f"{metric}: {rounded_above(value, kind, headroom)}"


def rounded_above(value: int, kind: units.Kind, headroom: Fraction | int) -> str:
    """`value` and `headroom` (a share) more, rounded up to two digits, as a manifest has it: `250k`, `1.1 MB`."""
    most = ceil(value * (1 + headroom))
    step = 10 ** max(0, len(str(most)) - 2)
    most = ceil(Fraction(most, step)) * step
    scale, unit = next((scale, unit) for scale, unit in _SCALES[kind] if most >= scale)
    whole, rest = divmod(most, scale)
    return f"{whole}{f'.{rest * 10 // scale}' if rest else ''}{unit}"
