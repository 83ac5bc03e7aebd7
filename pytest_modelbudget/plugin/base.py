"""The base of a run, and what collection found out for the end of it; both reach xdist's workers and come back."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest

from pytest_modelbudget.base import Base, BaseCommit, find_base
from pytest_modelbudget.engine.run import in_ci
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.isolation import Isolation, isolation_enabled
from pytest_modelbudget.plugin.importing import conftests
from pytest_modelbudget.plugin.progress import while_waiting
from pytest_modelbudget.results import codec
from pytest_modelbudget.session.finish import Collected

_INPUT, _OUTPUT = "modelbudget_base", "modelbudget_collected"


BASE: pytest.StashKey[Base] = pytest.StashKey()
COLLECTED: pytest.StashKey[Collected] = pytest.StashKey()
ISOLATION: pytest.StashKey[Isolation | None] = pytest.StashKey()
MODEL_ITEMS: pytest.StashKey[list[pytest.Item]] = pytest.StashKey()
"""All models, and mistakes of manifests, that were collected, whatever becomes of them."""


def prepare(config: pytest.Config) -> None:
    """Find the base once, on the controller; workers are told.

    Raises:
        pytest.UsageError: the user named a ref that is not there.
    """
    from_controller = getattr(config, "workerinput", {}).get(_INPUT)
    choice = str(config.getoption("model_budget_base") or config.getini("model_budget_base") or "auto")
    try:
        base_commit = (
            BaseCommit(*from_controller)
            if from_controller
            else find_base(config.rootpath, choice, os.environ, ci=in_ci())
        )
    except ModelBudgetError as mistake:
        raise pytest.UsageError(f"model-budget: {mistake}") from None
    config.stash[BASE] = base = Base(config.rootpath, base_commit)
    config.stash[COLLECTED] = Collected()
    config.add_cleanup(base.close)
    config.stash[ISOLATION] = isolation = (
        Isolation(partial(conftests, config), partial(while_waiting, config)) if _isolated(config) else None
    )
    if isolation is not None:
        config.add_cleanup(isolation.close)


def _isolated(config: pytest.Config) -> bool:
    """Whether models get a process of their own: not when the user wants to look into them with a debugger."""
    return isolation_enabled() and not (config.getoption("usepdb") or config.getoption("trace"))


def tell_worker(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """Give a worker the base."""
    workerinput[_INPUT] = list(asdict(config.stash[BASE].where).values())


def report_back(config: pytest.Config, workeroutput: dict[str, Any]) -> None:
    """Give the controller what this worker collected."""
    collected = config.stash[COLLECTED]
    groups, findings = map(codec.group_dict, collected.groups), map(codec.finding_dict, collected.findings)
    workeroutput[_OUTPUT] = json.dumps([list(groups), list(findings)])


def add_from_worker(config: pytest.Config, workeroutput: dict[str, Any]) -> None:
    """Add what a worker collected, which is what every other did, unless it ended early."""
    groups, findings = json.loads(workeroutput.get(_OUTPUT, "[[], []]"))
    config.stash[COLLECTED].add(map(codec.group_from, groups), map(codec.finding_from, findings))
