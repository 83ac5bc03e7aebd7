"""What a manifest says once it is read: entries, sources, levels that hold for many models, and all mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_modelbudget import budget as budgets
from pytest_modelbudget.budget import Budget, Rule
from pytest_modelbudget.config import schema
from pytest_modelbudget.config.levels import ManifestLevel, snapshot_of
from pytest_modelbudget.entry import ModelEntry, resources
from pytest_modelbudget.entry.resources import ResourceLimits
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.planner import written

_MergedLimits = dict[tuple[int, ...], tuple[Budget, ...]]
"""The limits of models without any of their own, by the levels that hold for them."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to mend: where, and what; `model` is the id it concerns, None for the file as a whole."""

    place: Place
    message: str
    model: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """What a manifest registers: good entries, references to sources with their place, and all mistakes."""

    file: str
    entries: tuple[ModelEntry, ...] = ()
    sources: tuple[tuple[str, Place], ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    layers: tuple[ManifestLevel, ...] = ()
    defaults: schema.Defaults = field(default_factory=schema.Defaults)
    home: str = "."
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    _merged: _MergedLimits = field(default_factory=dict, init=False, compare=False, repr=False)

    def apply(self, entry: ModelEntry, source: str = "") -> ModelEntry:
        """`entry` with defaults, tags and groups of this manifest under its own values, and its home here.

        `source` is what yielded it, where a source did.

        Raises:
            ModelBudgetError: a min of one level is above a max of another.
        """
        levels = [layer for layer in self.layers if layer.matches(entry)]
        return replace(
            entry,
            budgets=self._merged_limits(levels, entry.rules),
            batch=entry.batch or self.defaults.batch,
            dims={**self.defaults.dims, **entry.dims} if entry.dims else self.defaults.dims,
            framework=entry.framework or self.defaults.framework,
            optional=entry.optional or self.defaults.optional,
            run=entry.run or self.defaults.run,
            limits=ResourceLimits({**self.limits, **resources.parse(entry.limits)}) if entry.limits else self.limits,
            isolate=self.defaults.isolate if entry.isolate is None else entry.isolate,
            home=self.home,
            declared=Path(self.file).name,
            training=written.merge(*(level.recipes.get("training") for level in levels), entry.training),
            inference=written.merge(*(level.recipes.get("inference") for level in levels), entry.inference),
            serving=written.merge(*(level.recipes.get("serving") for level in levels), entry.serving),
            snapshot=snapshot_of(entry, levels),
            source=source,
        )

    def _merged_limits(self, levels: Sequence[ManifestLevel], rules: tuple[Rule, ...]) -> tuple[Budget, ...]:
        """The limits of several levels, the last of which has `rules`; those of models without any are one tuple.

        Raises:
            ModelBudgetError: a min of one level is above a max of another.
        """
        key = tuple(map(id, levels))
        if not rules and key in self._merged:
            return self._merged[key]
        limits = budgets.merge(*(level.budgets for level in levels), rules)
        if contradictions := "; ".join(budgets.contradictions(limits)):
            raise ModelBudgetError(contradictions)
        if not rules:
            self._merged[key] = limits
        return limits
