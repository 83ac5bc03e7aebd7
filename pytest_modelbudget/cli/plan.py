"""`modelbudget plan MODEL`: the memory of a training step or a forward pass, and what it fits."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_modelbudget import budget
from pytest_modelbudget.cli.targets import Targets
from pytest_modelbudget.engine import planning
from pytest_modelbudget.engine.planning import kind_of
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import NotReadable, read_yaml
from pytest_modelbudget.planner import written
from pytest_modelbudget.planner.fitting import capacity
from pytest_modelbudget.summary import Plan
from pytest_modelbudget.summary.metrics import GROWING, METRICS
from pytest_modelbudget.summary.show import plans


def run(options: Namespace) -> int:
    """Print the plans; 1 when a peak is not known or something does not fit."""
    asked = {kind: _section(f"--{kind}", getattr(options, kind)) for kind in written.KINDS}
    for device in options.device:
        capacity(device)  # a name that is none is told before anything is built

    def alter(entry: ModelEntry) -> ModelEntry:
        return _limited(_asked(entry, asked), options.device, options.growth)

    summary = Targets(options, finish=planning.only_planned, alter=alter).summary(options.model)
    if not summary.plans:
        raise ModelBudgetError(f"{options.model}: nothing is recorded there of planned runs")
    if options.json:
        data = summary.to_dict()
        print(json.dumps({name: data[name] for name in ("model", "plans", "growth")}, indent=1))
    else:
        print("\n".join(plans.summary_lines(summary)))
    return 0 if all(map(_good, summary.plans)) else 1


def _good(plan: Plan) -> bool:
    return plan.peak_bytes is not None and all(fit.fits for fit in plan.fits)


def _asked(entry: ModelEntry, asked: Mapping[str, written.Written]) -> ModelEntry:
    """`entry` with the recipes of the options over its own; without any with its own, else with one of training."""
    own = {kind: getattr(entry, kind) for kind in asked}
    if any(section is not None for section in asked.values()):
        own = {kind: False if said is None else written.merge(own[kind], said) for kind, said in asked.items()}
    elif not entry.recipes:
        own["training"] = True
    entry = replace(entry, training=own["training"], inference=own["inference"])
    sizes = {name: size for recipe in entry.recipes for name, size in recipe.dims.items()}
    return replace(entry, dims={**sizes, **entry.dims})


def _limited(entry: ModelEntry, devices: list[str], dims: list[str]) -> ModelEntry:
    """`entry` with limits that ask for these devices, else for its own, and for growth in these dimensions."""
    kinds = {kind_of(recipe) for recipe in entry.recipes}
    metrics = [name for name in GROWING if METRICS[name].plan in (None, *kinds)]
    wanted: dict[str, Any] = {"growth_in": {dim: dict.fromkeys(metrics, "quadratic") for dim in dims}} if dims else {}
    kept = () if devices else tuple(one for one in entry.parsed_budgets if one.bound == "fits")
    if devices:
        wanted["fits"] = devices
    return replace(entry, budgets=(*kept, *budget.parse(wanted, lambda _: None)))


def _section(option: str, text: str | None) -> written.Written:
    """A recipe as it stands on the command line: `batch=8,optimizer=adamw,dims.T=128`, or a mapping in braces.

    Raises:
        ModelBudgetError: it is neither, or no such recipe.
    """
    if text is None:
        return None
    if text.strip().startswith("{"):
        found = _yaml(option, text)
    else:
        found = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals:
                raise ModelBudgetError(f"{option}: {part!r}: write e.g. batch=8,optimizer=adamw,dims.T=128")
            section, dot, inner = name.strip().partition(".")
            if dot:
                found.setdefault(section, {})[inner] = _yaml(option, value)
            else:
                found[section] = _yaml(option, value)
    return written.read(option.strip("-"), found)


def _yaml(option: str, text: str) -> Any:
    try:
        return read_yaml(text).data
    except NotReadable as error:
        raise ModelBudgetError(f"{option}: {text!r} cannot be read ({error})") from None
