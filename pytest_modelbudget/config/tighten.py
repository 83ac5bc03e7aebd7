"""Limits with a ratchet, lowered in the text of a manifest; everything else of the text stays as the user wrote it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget import units
from pytest_modelbudget.budget import Budget, format_limit, limited_numbers, tightened_max
from pytest_modelbudget.config.loaded import LoadedManifest
from pytest_modelbudget.config.manifest import read
from pytest_modelbudget.config.rewriting import ManifestText, manifest_text
from pytest_modelbudget.config.tree import Keys, Tree
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary.metrics import Number


@dataclass(frozen=True, slots=True)
class LoweredLimit:
    """One limit that follows its models: `title` (`params`), as it was written and as it is now."""

    models: tuple[str, ...]
    title: str
    before: str
    after: str
    place: Place

    def __str__(self) -> str:
        return f"{', '.join(self.models)}: {self.title} max {self.before} -> {self.after}  [{self.place}]"


@dataclass(frozen=True, slots=True)
class Tightening:
    """The new `text`, what was lowered in it, and why other ratchets were left as they are."""

    text: str
    lowered: tuple[LoweredLimit, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(slots=True)
class _RatchetedLimit:
    """One max in the text, with all models it holds for and what each of them needs."""

    keys: Keys
    budget: Budget
    models: list[str] = field(default_factory=list)
    needed: list[Number] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)


def tighten(text: str, *, file: str, results: Sequence[Result], ids: Collection[str]) -> Tightening:
    """Lower each max that has a ratchet to what its models need with its slack; none is ever raised.

    `results` are those of the models that `file`, which reads `text`, registers; `ids` are all of these models. A limit
    that several models share follows the largest, and is left alone when not all of them were checked. Models
    that failed have no number to follow.

    Raises:
        ModelBudgetError: a manifest that cannot be read or rewritten.
    """
    loaded = read(text, file=file)
    if mistake := next((item for item in loaded.mistakes if item.model is None), None):
        raise ModelBudgetError(str(mistake))
    source = manifest_text(text, file)
    limits = _ratcheted_limits(source, loaded, results)
    if not set(ids) <= {result.id for result in results}:
        for limit in limits:
            if source.shared or limit.keys[:1] != ("models",):
                limit.obstacles.append("not all models that may share this limit were checked")
    left_alone = [f"{_limit_title(limit)}: {reason}" for limit in limits for reason in dict.fromkeys(limit.obstacles)]
    to_lower = [limit for limit in limits if not limit.obstacles and _new_max(limit) < limit.budget.limit]
    lowered = tuple(_lowered_limit(source.tree, file, limit) for limit in to_lower)
    changes = {limit.keys: change.after for limit, change in zip(to_lower, lowered, strict=True)}
    return Tightening(source.replaced(changes) if changes else text, lowered, tuple(left_alone))


def _limit_title(limit: _RatchetedLimit) -> str:
    return f"{', '.join(limit.models)}: {limit.budget.title}"


def _new_max(limit: _RatchetedLimit) -> Number:
    return max(limit.needed)


def _ratcheted_limits(source: ManifestText, loaded: LoadedManifest, results: Sequence[Result]) -> list[_RatchetedLimit]:
    """Every max with a ratchet, by where it is written."""
    limits_by_place: dict[Hashable, _RatchetedLimit] = {}
    for result in results:
        rules = {budget.key: budget for budget in result.limits}
        for ratchet in result.limits:
            maximum = rules.get((ratchet.layer, ratchet.metric, "max"))
            if ratchet.bound != "ratchet" or maximum is None:
                continue
            limit = _shared_limit(limits_by_place, source, loaded, result, maximum)
            if result.id not in limit.models:
                limit.models.append(result.id)
            _add_need(limit, ratchet, maximum, result)
    return list(limits_by_place.values())


def _shared_limit(
    limits_by_place: dict[Hashable, _RatchetedLimit],
    source: ManifestText,
    loaded: LoadedManifest,
    result: Result,
    maximum: Budget,
) -> _RatchetedLimit:
    """The limit that gives a model its max, one object for all models that read the same text."""
    keys = _keys_of_max(source.tree, loaded, result, maximum)
    place = None if keys is None else source.place(keys)
    if keys is None or place is None:
        obstacle = f"its max is not written as a plain value in {loaded.file}"
        return limits_by_place.setdefault((result.id, *maximum.key), _RatchetedLimit((), maximum, obstacles=[obstacle]))
    return limits_by_place.setdefault(place, _RatchetedLimit(keys, maximum))


def _add_need(limit: _RatchetedLimit, ratchet: Budget, maximum: Budget, result: Result) -> None:
    if result.summary is None or result.state.failed:
        limit.obstacles.append(f"{result.id} is {result.state.value}")
        return
    values = limited_numbers(result.summary, maximum)
    if not values or None in values:
        limit.obstacles.append(f"the number of {result.id} is not known")
    limit.needed += [tightened_max(ratchet, value) for value in values if value is not None]


def _keys_of_max(tree: Tree, loaded: LoadedManifest, result: Result, maximum: Budget) -> Keys | None:
    """The keys of the value that gives a model its max: its own, else that of the last tag, group or default."""
    entry = ModelEntry(id=result.id, build="", tags=result.tags)
    levels: list[Keys] = [level.keys for level in loaded.layers if level.matches(entry)]
    limit_keys: Keys = (maximum.metric,) if maximum.layer is None else ("layers", maximum.layer, maximum.metric)
    for level in (("models", result.id), *reversed(levels)):
        keys: Keys = (*level, "budgets", *limit_keys)
        value = _value_at(tree.data, keys)
        if isinstance(value, Mapping):
            keys, value = (*keys, "max"), value.get("max")
        if value is not None:
            return keys if _is_same_limit(value, maximum) else None
    return None


def _value_at(data: Any, keys: Keys) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _is_same_limit(value: object, maximum: Budget) -> bool:
    try:
        return units.parse(value, maximum.kind) == maximum.limit
    except ModelBudgetError:
        return False


def _lowered_limit(tree: Tree, file: str, limit: _RatchetedLimit) -> LoweredLimit:
    return LoweredLimit(
        models=tuple(limit.models),
        title=limit.budget.title,
        before=str(_value_at(tree.data, limit.keys)),
        after=format_limit(limit.budget.kind, _new_max(limit)),
        place=Place(file, tree.line(limit.keys)),
    )
