"""A model that was counted, and its plans, each made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast, get_args

from pytest_modelbudget.backends import Backend, NotRecorded, Planner, Server
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import AnyRecipe, Serving, Training, sums
from pytest_modelbudget.planner.loops import resolved
from pytest_modelbudget.planner.recipe import refuse_idle_no_sync
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES
from pytest_modelbudget.summary import Kind, Plan, Summary

_STEPS_NOTE = (
    "the inputs are those of the recipe's `steps`, so no model was run by itself: shapes, connections, calls, FLOPs "
    "and activation_bytes are not known"
)


@dataclass(slots=True)
class CountedModel:
    """A model that was counted, and how it was; see `Backend.summarize`. `notes` say how it was built."""

    owner: Backend
    model: object
    entry: ModelEntry
    inputs: Inputs | None
    sizes: Mapping[str, int]
    built_here: bool
    rebuild: Callable[[int], object] | None = None
    notes: tuple[str, ...] = ()
    counted: dict[tuple[tuple[str, int], ...], Summary] = field(default_factory=dict)
    planned: dict[str, Plan | Exception | SystemExit] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that its limits name."""
        return tuple(dict.fromkeys(device for budget in self.entry.parsed_budgets for device in budget.devices))

    def summary(self, sizes: Mapping[str, int]) -> Summary:
        """The model counted at other sizes of its dimensions."""
        key = tuple(sorted(sizes.items()))
        if key not in self.counted:
            summary = self.owner.summarize(
                self.model,
                name=self.entry.id,
                inputs=None if self._inputs_of_steps else self.inputs,
                sizes=sizes,
                built_here=self.built_here,
                **self._run(),
                **self._activations(),
            )
            notes = (_STEPS_NOTE, *summary.notes[1:]) if self._inputs_of_steps else summary.notes
            self.counted[key] = replace(summary, notes=(*self.notes, *notes))
        return self.counted[key]

    @property
    def _inputs_of_steps(self) -> bool:
        """Whether the inputs are those of a step of several models, and not of the model."""
        return any(not isinstance(recipe, Serving) and recipe.steps != "none" for recipe in self.entry.recipes)

    def _run(self) -> dict[str, object]:
        """How the model may be run on values, for a framework that can.

        Raises:
            ModelBudgetError: the entry asks for such a run, and the framework cannot.
        """
        if hasattr(self.owner, "with_memory"):
            return {"rebuild": self.rebuild, "run": self.entry.run}
        if self.entry.run == "real":
            prefix = f"{self.entry.place}: " if self.entry.place else ""
            raise ModelBudgetError(
                f"{prefix}{self.entry.id}: run: real is for torch models; {self.owner.FRAMEWORK} "
                "models are counted without values: remove the key"
            )
        return {}

    def _activations(self) -> dict[str, object]:
        """Whether the activations are asked for, for a framework that does not count them by itself."""
        if not getattr(self.owner, "ACTIVATIONS_ON_REQUEST", False):
            return {}
        limited = any(budget.metric == "activation_bytes" for budget in self.entry.parsed_budgets)
        return {"activations": limited or any(isinstance(recipe, Training) for recipe in self.entry.recipes)}

    def plan(self, recipe: AnyRecipe) -> Plan:
        """What a run takes, by the framework's own recorder where there is one, else as a sum; made once for a recipe.

        Raises:
            ModelBudgetError: the recipe does not fit the model; whatever the model's own code raises comes through.
        """
        sizes = self.sizes_of(recipe)
        key = _run_key(recipe, sizes)
        if key not in self.planned:
            try:
                plan = self._plan(recipe, sizes)
            except (Exception, SystemExit) as error:
                self.planned[key] = error
            else:
                self.planned[key] = self.planned[_run_key(with_habits(recipe), sizes)] = plan
        if isinstance(planned := self.planned[key], Plan):
            return planned
        raise planned

    def _plan(self, recipe: AnyRecipe, sizes: Mapping[str, int]) -> Plan:
        refuse_idle_no_sync(recipe)
        if isinstance(recipe, Serving):
            return self._serve(recipe, sizes)
        if not hasattr(self.owner, "plan"):
            return sums.plan(self.summary(sizes), recipe, sizes)
        planner = cast(Planner, self.owner)
        try:
            [plan] = planner.plan(
                self.model,
                name=self.entry.id,
                inputs=self.inputs,
                sizes=sizes,
                recipes=(recipe,),
                built_here=self.built_here,
                devices=self.devices,
                **(self._run() if hasattr(self.owner, "with_memory") else {}),
            )
        except NotRecorded:
            return sums.plan(self.summary(sizes), recipe, sizes)
        return plan

    def _serve(self, recipe: Serving, sizes: Mapping[str, int]) -> Plan:
        if not hasattr(self.owner, "serve"):
            raise ModelBudgetError(f"serving is planned for torch models, not for those of {self.owner.FRAMEWORK}")
        return cast(Server, self.owner).serve(
            self.model,
            name=self.entry.id,
            inputs=self.inputs,
            sizes=sizes,
            recipe=recipe,
            built_here=self.built_here,
            devices=self.devices,
        )

    def sizes_of(self, recipe: AnyRecipe) -> dict[str, int]:
        """The sizes of the dimensions in a run: the recipe's own in place of the model's.

        Raises:
            ModelBudgetError: the recipe sizes a dimension that the inputs do not have.
        """
        batch = None if self._has_batch(recipe.batch) else recipe.batch
        run_sizes = {**({BATCH: batch} if batch else {}), **recipe.dims}
        if unknown := [name for name in run_sizes if name not in self.sizes]:
            dimension_names = ", ".join(self.sizes) or "none"
            key = "batch" if unknown[0] == BATCH else f"dims.{unknown[0]}"
            raise ModelBudgetError(
                f"{kind_of(recipe)}.{key}: the inputs have no dimension {unknown[0]} (they have {dimension_names}): "
                f'name it in inputs, as in "float32[B, 3, 224, 224]"'
            )
        return {**self.sizes, **run_sizes}

    def _has_batch(self, batch: int | None) -> bool:
        """Whether inputs without a dimension B are for this batch as they are: it is the first size of each of them."""
        if self.inputs is None or BATCH in self.sizes or not (ports := self.inputs.ports):
            return False
        return all(port.spec.shape[:1] == (batch,) for port in ports)


def _run_key(recipe: AnyRecipe, sizes: Mapping[str, int]) -> str:
    """The same for recipes that are one run: whether a size is the recipe's or the model's makes none of another."""
    unsized = replace(recipe, dims={}) if isinstance(recipe, Serving) else replace(recipe, dims={}, batch=None)
    return f"{unsized!r} {sorted(sizes.items())}"


def kind_of(recipe: AnyRecipe) -> Kind:
    """The section that a recipe is written in."""
    return next(kind for kind in get_args(Kind) if RECIPE_TYPES[kind] is type(recipe))


def own_sizes(entry: ModelEntry) -> dict[str, int]:
    """The sizes that the recipes of `entry` give, with the tokens of a request for the one dimension without a size."""
    sizes = {name: size for recipe in entry.recipes for name, size in recipe.dims.items()}
    symbols = entry.inputs.symbols if isinstance(entry.inputs, Inputs) else ()
    unsized = [symbol for symbol in symbols if symbol not in (BATCH, *sizes, *entry.dims)]
    tokens = [recipe.tokens for recipe in entry.recipes if isinstance(recipe, Serving) and recipe.tokens]
    return {**sizes, unsized[0]: tokens[0]} if tokens and len(unsized) == 1 else sizes


def with_habits(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with its loop's habits written out: a plan of it looks at no other ones."""
    return resolved(recipe) if isinstance(recipe, Training) else recipe
