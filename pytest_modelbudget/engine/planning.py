"""What is planned of a model after it was counted: its recipes, whether they fit, and how its numbers grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast, get_args

from pytest_modelbudget.backends import Backend, NotRecorded, Planner, Server
from pytest_modelbudget.budget import Budget
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import AnyRecipe, Recipe, Serving, Training, growth, sums
from pytest_modelbudget.planner.advice import MAX_SIZE, largest_fitting_size, levers, unit_of, with_size
from pytest_modelbudget.planner.devices import has_bfloat16
from pytest_modelbudget.planner.fitting import with_fits
from pytest_modelbudget.planner.known_states import KnownStates
from pytest_modelbudget.planner.loops import resolved
from pytest_modelbudget.planner.recipe import describe, refuse_idle_no_sync
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES
from pytest_modelbudget.planner.ways import cheapest_way
from pytest_modelbudget.summary import Fit, Growth, Kind, LargestSize, Plan, Summary, Way
from pytest_modelbudget.summary.metrics import METRICS, PEAK_METRICS
from pytest_modelbudget.summary.work import WORK_METRICS, work_number
from pytest_modelbudget.system.frames import frame_location, user_frame

_STEPS_NOTE = (
    "the inputs are those of the recipe's `steps`, so no model was run by itself: shapes, connections, calls, FLOPs "
    "and activation_bytes are not known"
)
_MOST_SIZES = 6
"""Sizes at which a dimension is looked at, at most."""


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
                self.planned[key] = self.planned[_run_key(_with_habits(recipe), sizes)] = plan
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


def with_plans(subject: CountedModel, summary: Summary) -> Summary:
    """`summary` with the plans that its entry asks for and the growth that its limits ask for.

    What cannot be planned is a plan without a peak, with the reason; nothing but KeyboardInterrupt escapes.
    """
    plans = plans_of(subject)  # first: what its recipes do not say is told of these alone
    return replace(summary, plans=plans, growth=tuple(_growth_laws(subject, summary, subject.entry.parsed_budgets)))


def plans_only(subject: CountedModel) -> Summary:
    """A summary without rows that has what is planned, with all advice; nothing is counted that no plan needs."""
    plans = plans_of(subject, advice=True)
    laws = tuple(_growth_laws(subject, None, subject.entry.parsed_budgets))
    return Summary(subject.entry.id, subject.owner.FRAMEWORK, (), plans=plans, growth=laws)


def plans_of(subject: CountedModel, *, advice: bool = False) -> tuple[Plan, ...]:
    """The plans that its entry asks for, with what would help where a limit of memory is broken.

    With `advice` that is told in any case, and the largest sizes that fit the devices are looked for too.
    """
    return tuple(_plan_with_advice(subject, recipe, advice=advice) for recipe in subject.entry.recipes)


def _plan_with_advice(subject: CountedModel, recipe: AnyRecipe, *, advice: bool) -> Plan:
    limits, devices = subject.entry.parsed_budgets, subject.devices
    plan = with_fits(_plan_or_reason(subject, recipe), devices)
    if isinstance(recipe, Serving) or plan.peak_bytes is None or not (advice or _breaks_memory_limit(plan, limits)):
        return plan
    sizes = subject.sizes_of(recipe)
    known = KnownStates()
    known.note(recipe, plan)
    measure, bfloat16 = partial(_measured, subject, known=known), _has_bfloat16(plan)
    helpful = plan.levers or levers(recipe, plan, measure, sizes.get(BATCH), bfloat16=bfloat16)
    ways = tuple(_ways(subject, plan, recipe, sizes.get(BATCH), limits, advice, known))
    plan = replace(plan, levers=helpful, ways=ways)
    return _with_largest_sizes(plan, subject, recipe, sizes) if advice else plan


def _with_habits(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with its loop's habits written out: a plan of it looks at no other ones."""
    return resolved(recipe) if isinstance(recipe, Training) else recipe


def _measured(subject: CountedModel, recipe: Recipe, *, known: KnownStates | None = None) -> Plan:
    """The plan of a changed recipe, with whether it fits the devices; it looks at no other habits of a loop."""
    plan = with_fits(_plan_or_reason(subject, _with_habits(recipe)), subject.devices)
    if known is not None:
        known.note(recipe, plan)
    return plan


def _measured_fit(subject: CountedModel, recipe: Recipe, device: str, known: KnownStates) -> Fit | None:
    """Whether a changed recipe fits a device; None where that is not known."""
    plan = _measured(subject, recipe, known=known)
    return None if plan.peak_bytes is None else next(fit for fit in plan.fits if fit.device == device)


def _ways(
    subject: CountedModel,
    plan: Plan,
    recipe: Recipe,
    batch: int | None,
    limits: Iterable[Budget],
    advice: bool,
    known: KnownStates,
) -> Iterator[Way]:
    """The cheapest way to fit each device that the run does not fit; with advice, where it is tight, too."""
    strict = {device for limit in limits if limit.strict for device in limit.devices}
    for fit in plan.fits:
        if fit.verdict == "does not fit" or (fit.verdict == "tight" and (advice or fit.device in strict)):
            fit_of = partial(_measured_fit, subject, device=fit.device, known=known)
            bfloat16 = has_bfloat16(fit.device)
            yield cheapest_way(recipe, fit.device, fit_of, batch, known=known, capacity=fit.capacity, bfloat16=bfloat16)


def _has_bfloat16(plan: Plan) -> bool:
    """Whether one of the devices of a plan multiplies in bfloat16; taken to be so where none is named."""
    return not plan.fits or any(has_bfloat16(fit.device) for fit in plan.fits)


def _breaks_memory_limit(plan: Plan, limits: Sequence[Budget]) -> bool:
    """Whether the plan is over a limit of memory."""
    metric = next(name for name, kind in PEAK_METRICS.items() if kind == plan.kind)
    maxima = [budget.limit for budget in limits if (budget.metric, budget.bound) == (metric, "max") and budget.limit]
    strict = {device for limit in limits if limit.strict for device in limit.devices}
    assert plan.peak_bytes is not None
    return any(fit.fits is False or (fit.verdict == "tight" and fit.device in strict) for fit in plan.fits) or any(
        plan.peak_bytes > limit for limit in maxima
    )


def _with_largest_sizes(plan: Plan, subject: CountedModel, recipe: Recipe, sizes: Mapping[str, int]) -> Plan:
    """The plan with the largest size of each dimension on each device, and a note where that cannot be told."""
    largest: list[LargestSize] = []
    unknown: list[str] = []
    for device in subject.devices:
        for dim, size in sizes.items():
            answer = _largest_size(subject, recipe, dim, size, device)
            if isinstance(answer, LargestSize):
                largest.append(answer)
            else:
                unknown.append(f"largest {dim} on {device}: {answer}")
    return replace(plan, largest=tuple(largest), notes=(*plan.notes, *unknown))


def _largest_size(subject: CountedModel, recipe: Recipe, dim: str, size: int, device: str) -> LargestSize | str:
    """The largest size of a dimension on a device, or why it cannot be told."""
    unit = unit_of(recipe, dim)
    failures: list[str] = []

    def room(count: int) -> int | None:
        plan = _measured(subject, with_size(recipe, dim, count * unit))
        if plan.peak_bytes is None:
            failures.append(f"{dim}={count * unit} is {plan.notes[0] if plan.notes else 'not planned'}")
        return next(fit.room for fit in plan.fits if fit.device == device)

    count = largest_fitting_size(room, max(1, size // unit))
    if count is not None:
        return LargestSize(dim, count * unit, device)
    return f"not known, {failures[0]}" if failures else f"more than {MAX_SIZE * unit:,}"


def _plan_or_reason(subject: CountedModel, recipe: AnyRecipe) -> Plan:
    try:
        plan = subject.plan(recipe)
        return replace(plan, recipe=plan.recipe or describe(recipe))
    except (Exception, SystemExit) as error:
        return Plan(kind_of(recipe), describe(recipe), None, notes=(f"not planned: {_reason_text(error)}",))


def _reason_text(error: BaseException) -> str:
    """Why something could not be had, on one line, with the user's own line where there is one."""
    if isinstance(error, ModelBudgetError):
        return " ".join(str(error).split())
    message = f"{type(error).__name__}: {error}".split("\n")[0]
    line = user_frame(error)
    return message if line is None else f"{message} ({frame_location(line)}: in {line.name})"


def _growth_laws(subject: CountedModel, summary: Summary | None, limits: tuple[Budget, ...]) -> Iterator[Growth]:
    requested = dict.fromkeys((budget.dim, budget.metric) for budget in limits if budget.dim)
    for dim, metric in requested:
        try:
            yield _growth_law(subject, dim, metric, small=summary is not None and summary.real_run)
        except (Exception, SystemExit) as error:
            yield Growth(dim, metric, subject.sizes.get(dim, 1), reason=_reason_text(error))


def _growth_law(subject: CountedModel, dim: str, metric: str, *, small: bool) -> Growth:
    """The law of one number, looked at in larger sizes, and where these do not go, in smaller ones.

    With `small` only in smaller ones, since every look at the model takes its memory.
    """
    if dim not in subject.sizes:
        raise ModelBudgetError(f"the inputs have no dimension {dim}; they have {', '.join(subject.sizes) or 'none'}")
    declared, number = _metric_at_size(subject, dim, metric)
    smaller_sizes = growth.sizes(declared, downwards=True, count=_MOST_SIZES)[::-1]
    if small:
        return _fit_law(dim, metric, declared, number, smaller_sizes)
    try:
        return _fit_law(dim, metric, declared, number, growth.sizes(declared, count=_MOST_SIZES))
    except (Exception, SystemExit) as error:
        with suppress(Exception, SystemExit):
            return _fit_law(dim, metric, declared, number, smaller_sizes)
        raise error


def _fit_law(dim: str, metric: str, declared: int, number: Callable[[int], int], sizes: tuple[int, ...]) -> Growth:
    """The law through the numbers at the first three of `sizes`, and at more while that is not enough to tell."""
    if len(sizes) < 3:
        raise ModelBudgetError(f"{dim}={declared} is too small to be halved twice")
    points = [(size, number(size)) for size in sizes[:3]]
    law = growth.law(dim, metric, declared, points)
    for size in sizes[3:]:
        if growth.is_settled(law):
            break
        try:
            points.append((size, number(size)))
        except (Exception, SystemExit):  # as far as it goes
            break
        law = growth.law(dim, metric, declared, points)
    return law


def _metric_at_size(subject: CountedModel, dim: str, metric: str) -> tuple[int, Callable[[int], int]]:
    """The declared size of a dimension, and what gives the metric at a size of it."""
    if metric in PEAK_METRICS:
        recipe = next(
            (
                candidate
                for candidate in subject.entry.recipes
                if not isinstance(candidate, Serving) and kind_of(candidate) == PEAK_METRICS[metric]
            ),
            None,
        )
        if recipe is None:
            raise ModelBudgetError(
                f"no {PEAK_METRICS[metric]} is planned: write {PEAK_METRICS[metric]}: {{}} for this model"
            )
        declared = subject.sizes_of(recipe)[dim]
        return declared, lambda size: _known_peak(subject.plan(_with_habits(with_size(recipe, dim, size))))

    if metric in WORK_METRICS:
        return _work_at_size(subject, dim, metric)

    def count(size: int) -> int:
        summary = subject.summary({**subject.sizes, dim: size})
        value = METRICS[metric].get(summary)
        if value is None or (metric == "flops" and summary.flops.is_lower_bound):
            raise ModelBudgetError(f"{metric} is not known at {dim}={size}")
        return int(value)

    return subject.sizes[dim], count


def _work_at_size(subject: CountedModel, dim: str, metric: str) -> tuple[int, Callable[[int], int]]:
    """As `_metric_at_size`, of the work of the training, else of the inference."""
    recorded = [recipe for recipe in subject.entry.recipes if not isinstance(recipe, Serving)]
    recipe = next(iter(sorted(recorded, key=lambda recipe: kind_of(recipe) != "training")), None)
    if recipe is None:
        raise ModelBudgetError(f"{metric} is of a planned run: write training: {{}} or inference: {{}} for this model")

    def count(size: int) -> int:
        if (number := work_number(metric, subject.plan(_with_habits(with_size(recipe, dim, size))))) is None:
            raise ModelBudgetError(f"{metric} is not known at {dim}={size}")
        return int(number)

    return subject.sizes_of(recipe)[dim], count


def _known_peak(plan: Plan) -> int:
    if plan.peak_bytes is None:
        raise ModelBudgetError(plan.notes[0] if plan.notes else "the peak is not known")
    return plan.peak_bytes
