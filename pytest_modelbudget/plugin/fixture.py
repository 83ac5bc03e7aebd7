"""The `model_budget` fixture: check a model inside an ordinary test."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_modelbudget.engine.run import live_entry, summarize_live
from pytest_modelbudget.engine.run import run as run_entry
from pytest_modelbudget.entry import ModelEntry, RunMode, SnapshotKind
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.planner import Inference, Serving, Training
from pytest_modelbudget.plugin import RESULTS
from pytest_modelbudget.plugin.base import BASE
from pytest_modelbudget.plugin.items import ModelCheckFailed, failure_text, record
from pytest_modelbudget.results import State
from pytest_modelbudget.session.registry import relative_posix
from pytest_modelbudget.summary import Summary


class ModelBudget:
    """Checks models for one test: limits always, the committed snapshot when the run has `--model-budget`."""

    def __init__(self, node: pytest.Item, *, snapshots: bool) -> None:
        self._node = node
        self._snapshots = snapshots

    def check(
        self,
        model_or_builder: object,
        inputs: Any = None,
        *,
        name: str | None = None,
        batch: int | None = None,
        dims: Mapping[str, int] | None = None,
        samples: int | None = None,
        framework: str | None = None,
        optional: bool = False,
        training: Mapping[str, Any] | Training | bool | None = None,
        inference: Mapping[str, Any] | Inference | bool | None = None,
        serving: Mapping[str, Any] | Serving | bool | None = None,
        run: RunMode | None = None,
        snapshot: SnapshotKind | None = None,
        **limits: Any,
    ) -> Summary:
        """Fail the test when the model breaks a limit or differs from its snapshot; return its summary.

        `limits` are budgets by metric name, as in a manifest: `params="25k"`, `layers={"dense*": {"params": "2k"}}`,
        `fits="24 GB"`, and `training`, `inference` and `serving` what is planned of the model's memory; `run` and
        `snapshot` are written as there. The snapshot is named after the test, or `name`. A live model is left exactly
        as it is.
        """
        __tracebackhide__ = True
        entry = self._entry(
            model_or_builder, inputs, name, batch=batch, dims=dims or {}, samples=samples,
            framework=framework, optional=optional, budgets=limits, training=training, inference=inference,
            serving=serving, run=run, snapshot=snapshot,
        )  # fmt: skip
        result = run_entry(
            entry,
            self._node.config.rootpath,
            accept=bool(self._node.config.getoption("model_budget_update")),
            snapshots=self._snapshots,
            count=lambda entry: summarize_live(model_or_builder, entry),
            base=self._node.config.stash.get(BASE, None) if self._snapshots else None,
        )
        result = record(self._node, result)
        if result.state is State.SKIPPED:
            pytest.skip(result.error)
        if result.state.failed:
            raise ModelCheckFailed(result, failure_text(self._node, result))
        assert result.summary is not None
        return result.summary

    def _entry(self, model: object, inputs: Any, name: str | None, **options: Any) -> ModelEntry:
        _, line, _ = self._node.reportinfo()
        file = relative_posix(self._node.path, self._node.config.rootpath)
        label = name or re.sub(r"[^A-Za-z0-9._+=-]+", "-", self._node.name).strip(".-")
        if any(result.id == label for result in self._node.stash.get(RESULTS, [])):
            raise ModelBudgetError(
                f"{file}: {self._node.name} checks a second model as {label!r}: give it a name= of its own"
            )
        return live_entry(
            label,
            model,
            inputs,
            place=Place(file, None if line is None else line + 1),
            home=relative_posix(self._node.path.parent, self._node.config.rootpath),
            declared=self._declared(),
            **options,
        )

    def _declared(self) -> str:
        """`test_nets.py::TestNets::test_width`: the test without its parameters, so that all its cases share it."""
        classes = [node.name for node in self._node.listchain() if isinstance(node, pytest.Class)]
        test = getattr(self._node, "originalname", None) or self._node.name
        return "::".join([self._node.path.name, *classes, test])
