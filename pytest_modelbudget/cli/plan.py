"""`modelbudget plan MODEL`: the memory of a training step or a forward pass, and what it fits."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_modelbudget import budget
from pytest_modelbudget.cli.project import print_lines
from pytest_modelbudget.cli.targets import Targets
from pytest_modelbudget.engine.counted import kind_of, own_sizes
from pytest_modelbudget.engine.planning import plans_only
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import InvalidText, read_yaml
from pytest_modelbudget.planner import written
from pytest_modelbudget.planner.fitting import device_capacity
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES
from pytest_modelbudget.summary import Plan
from pytest_modelbudget.summary.metrics import GROWING, METRICS
from pytest_modelbudget.summary.show import plans


def run(options: Namespace) -> int:
    """Print the plans; 1 when a peak is not known or something does not fit (what is tight may)."""
    recipes = {kind: _parse_recipe(f"--{kind}", getattr(options, kind)) for kind in RECIPE_TYPES}
    for device in options.device:
        device_capacity(device)  # a name that is none is told before anything is built

    def alter(entry: ModelEntry) -> ModelEntry:
        return _with_limits(_with_recipes(entry, recipes), options.device, options.growth)

    summary = Targets(options, finish=plans_only, alter=alter).summary(options.model)
    if not summary.plans:
        raise ModelBudgetError(f"{options.model}: nothing is recorded there of planned runs")
    if options.json:
        data = summary.to_dict()
        print(json.dumps({name: data[name] for name in ("model", "plans", "growth")}, indent=1))
    else:
        print_lines(plans.summary_lines(summary))
    return 0 if all(map(_is_good, summary.plans)) else 1


def _is_good(plan: Plan) -> bool:
    return plan.peak_bytes is not None and all(fit.verdict in ("fits", "tight") for fit in plan.fits)


def _with_recipes(entry: ModelEntry, recipes: Mapping[str, written.RecipeSection]) -> ModelEntry:
    """`entry` with the recipes of the options over its own; without any with its own, else with one of training."""
    sections = {kind: getattr(entry, kind) for kind in recipes}
    if any(section is not None for section in recipes.values()):
        sections = {
            kind: False if override is None else written.merge(sections[kind], override)
            for kind, override in recipes.items()
        }
    elif not entry.recipes:
        sections["training"] = True
    entry = replace(entry, **sections)
    return replace(entry, dims={**own_sizes(entry), **entry.dims})


def _with_limits(entry: ModelEntry, devices: list[str], dims: list[str]) -> ModelEntry:
    """`entry` with limits that ask for these devices, else for its own, and for growth in these dimensions."""
    kinds = {kind_of(recipe) for recipe in entry.recipes}
    metrics = [name for name in GROWING if METRICS[name].plan in (None, *kinds)]
    limits: dict[str, Any] = {"growth_in": {dim: dict.fromkeys(metrics, "quadratic") for dim in dims}} if dims else {}
    own_fits = () if devices else tuple(limit for limit in entry.parsed_budgets if limit.bound == "fits")
    if devices:
        limits["fits"] = devices
    return replace(entry, budgets=(*own_fits, *budget.parse(limits, lambda _: None)))


def _parse_recipe(option: str, text: str | None) -> written.RecipeSection:
    """A recipe as it stands on the command line: `batch=8,optimizer=adamw,dims.T=128`, or a mapping in braces.

    Raises:
        ModelBudgetError: it is neither, or no such recipe.
    """
    if text is None:
        return None
    if text.strip().startswith("{"):
        values = _parse_yaml(option, text)
    else:
        values = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals:
                raise ModelBudgetError(f"{option}: {part!r}: write e.g. batch=8,optimizer=adamw,dims.T=128")
            section, dot, inner = name.strip().partition(".")
            if dot:
                values.setdefault(section, {})[inner] = _parse_yaml(option, value)
            else:
                values[section] = _parse_yaml(option, value)
    return written.read(option.strip("-"), values)


def _parse_yaml(option: str, text: str) -> Any:
    try:
        return read_yaml(text).data
    except InvalidText as error:
        raise ModelBudgetError(f"{option}: {text!r} cannot be read ({error})") from None
