"""The cheapest way to fit a device: combinations of changes of a recipe, each recorded as a plan of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pytest_modelbudget.planner.changes import COSTS, Change, changes_of, smaller_passes
from pytest_modelbudget.planner.known_states import KnownStates
from pytest_modelbudget.planner.recipe import Recipe, describe
from pytest_modelbudget.planner.written import recipe_text
from pytest_modelbudget.summary import Fit, Way

MOST_RECORDINGS = 16
"""Plans that are made for one device, at most."""

FitOf = Callable[[Recipe], Fit | None]
"""Whether a run by a recipe fits the device; None where it cannot be planned."""


def cheapest_way(
    recipe: Recipe,
    device: str,
    fit_of: FitOf,
    batch: int | None = None,
    *,
    known: KnownStates | None = None,
    capacity: int = 0,
    bfloat16: bool = True,
) -> Way:
    """The cheapest changes with which the run surely fits `device`, and the recipe with them.

    Changes are added by what they cost, cheapest kind first (the batch at its smallest at once), until the run fits;
    then, dearest first, each is taken back without which it still fits, and the batch is made as large as fits. So none
    of those that are left can be left out. A run whose weights and states alone are more than the `capacity`, by what
    is `known` of them, is not recorded. At most `MOST_RECORDINGS` plans are made; a way without a recipe says that none
    was found among them. Without `bfloat16` the device only emulates that.
    """
    trials = _Trials(recipe, fit_of, known or KnownStates(), capacity)
    passes = list(smaller_passes(recipe, batch))
    taken = trials.added(_by_cost([*changes_of(recipe, bfloat16=bfloat16), *passes[-1:]]))
    if not taken:
        return Way(device, tried=trials.count)
    for change in sorted(taken[:-1], key=lambda change: -COSTS.index(change.cost)):
        rest = [other for other in taken if other is not change]
        if change.cost != "free" and trials.fit(rest):
            taken = rest
    taken = trials.largest_passes(taken, passes)
    changed = _applied(recipe, taken)
    held = (change.name for change in taken if change.applied(changed) == changed)  # not what a later one takes back
    return Way(device, recipe_text(changed), tuple(held), trials.count)


def _by_cost(changes: Iterable[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: COSTS.index(change.cost))


def _applied(recipe: Recipe, changes: Iterable[Change]) -> Recipe:
    for change in changes:
        recipe = change.applied(recipe)
    return recipe


class _Trials:
    """Combinations of changes of one recipe, each recorded once; after the most recordings none fits any more."""

    def __init__(self, recipe: Recipe, fit_of: FitOf, known: KnownStates, capacity: int) -> None:
        self._recipe, self._fit_of, self._known, self._capacity = recipe, fit_of, known, capacity
        self._fits: dict[str, Fit | None] = {}

    @property
    def count(self) -> int:
        """How many were recorded."""
        return len(self._fits)

    def fit(self, changes: Sequence[Change]) -> bool:
        """Whether the run surely fits with these changes."""
        if self._is_too_large(changes):
            return False
        fit = self._recorded(changes)
        return fit is not None and fit.verdict == "fits"

    def added(self, changes: Iterable[Change]) -> list[Change]:
        """The changes up to the one with which the run fits, but those that it cannot be planned with; else none.

        A change with which it needs more than without is left out, too: a later one may do alone.
        """
        taken: list[Change] = []
        for change in changes:
            if (combined := self._planned_with(taken, change)) is not None:
                taken = combined
                if self.fit(taken):
                    return taken
        return []

    def _planned_with(self, taken: list[Change], change: Change) -> list[Change] | None:
        """`taken` with `change`, or without the dearest that excludes it; None where the run cannot be planned so."""
        if self._known.refused(change.applied(self._recipe)):
            return None
        if self._is_too_large(combined := [*taken, change]):
            return combined  # it is planned with what is added until the run fits
        for rest in (taken, *([other for other in taken if other is not excluded] for excluded in reversed(taken))):
            if (fit := self._recorded(combined := [*rest, change])) is not None:
                return None if self._raises(fit, rest) else combined
        return None

    def _raises(self, fit: Fit, changes: Sequence[Change]) -> bool:
        """Whether a run needs more than that with `changes`, where both are known."""
        before = self._fits.get(describe(_applied(self._recipe, changes)))
        return before is not None and (fit.high or 0) > (before.high or 0) > 0

    def _is_too_large(self, changes: Sequence[Change]) -> bool:
        """Whether what the run holds all the time leaves no room: it needs no recording."""
        return self._known.least_bytes(_applied(self._recipe, changes)) > self._capacity

    def largest_passes(self, taken: list[Change], passes: Sequence[Change]) -> list[Change]:
        """`taken` with the largest of `passes` that fits in place of the smallest."""
        if not passes or passes[-1] not in taken:
            return taken
        place, low, high = taken.index(passes[-1]), 0, len(passes) - 1
        while low < high:
            middle = (low + high) // 2
            fits = self.fit([*taken[:place], passes[middle], *taken[place + 1 :]])
            low, high = (low, middle) if fits else (middle + 1, high)
        return [*taken[:place], passes[high], *taken[place + 1 :]]

    def _recorded(self, changes: Sequence[Change]) -> Fit | None:
        recipe = _applied(self._recipe, changes)
        words = describe(recipe)
        if words not in self._fits and len(self._fits) < MOST_RECORDINGS:
            self._fits[words] = self._fit_of(recipe)
        return self._fits.get(words)
