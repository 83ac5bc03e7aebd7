"""What recorded runs tell of one that was not: the least that its weights, gradients and optimizer's states take."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from pytest_modelbudget.planner.recipe import Recipe, Training
from pytest_modelbudget.summary import Plan, Role


class KnownStates:
    """What runs by one recipe, and by it with changes of the table `changes.CHANGES`, had alive at their peaks.

    Of those changes `precision` and `sharding` alone make other weights and gradients, these and what the optimizer is
    make other states. At the optimizer's step they are all there at once, in each run that is alike in this; what was
    alive of them at a peak is at most that.
    """

    def __init__(self) -> None:
        self._bytes: dict[Hashable, int] = {}
        self._refused: list[Recipe] = []

    def note(self, recipe: Recipe, plan: Plan) -> None:
        """A run by `recipe` was planned, or could not be."""
        if plan.peak_bytes is None:
            self._refused.append(recipe)
        elif plan.reserved_bytes is not None:  # a recorded run, whose parts are of one moment
            sizes = plan.by_role()
            for role, key in _keys(recipe):
                self._bytes[key] = max(self._bytes.get(key, 0), sizes.get(role, 0))

    def least_bytes(self, recipe: Recipe) -> int:
        """Bytes that a run by `recipe` has alive at once at least; 0 where nothing is known."""
        return sum(self._bytes.get(key, 0) for _, key in _keys(recipe))

    def refused(self, recipe: Recipe) -> bool:
        """Whether it is known that no run by `recipe` is planned."""
        return recipe in self._refused


def _keys(recipe: Recipe) -> Iterator[tuple[Role, Hashable]]:
    """The roles of what is surely there at one moment, each with what its size depends on."""
    if recipe.offload or recipe.steps != "none":  # copies of what is on the host come and go; several optimizers step
        return
    if not isinstance(recipe, Training):
        yield "param", ("param", recipe.precision)
        return
    if recipe.pipeline or recipe.in_backward or recipe.optimizer == "lomo":  # other ranks; gradients go one by one
        return
    weights = recipe.precision, repr(recipe.sharding)
    yield "param", ("param", weights)
    yield "gradient", ("gradient", weights)
    yield "optimizer", ("optimizer", weights, repr(recipe.optimizer), repr(recipe.optimizer_options), recipe.fused)
