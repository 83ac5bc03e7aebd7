"""The face to pytest: options, and nothing more until one of them is on.

This module is imported at every start of pytest, so it imports nothing but pytest and small parts of the
standard library; what runs with the option on lives in `collect`, `controller` and `fixture`.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_modelbudget.plugin.fixture import ModelBudget
    from pytest_modelbudget.results import Result

MARKER = "model_budget"
RESULTS: pytest.StashKey[list[Result]] = pytest.StashKey()
"""The results an item came to; the controller gets them from its report."""

_SWITCHES = ("model_budget", "model_budget_update", "model_budget_prune", "model_budget_part")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every flag is long, and takes a required value or none, so that none can swallow a test path."""
    group = parser.getgroup("model-budget", "size and cost of neural networks")
    add = group.addoption
    add(
        "--model-budget",
        action="store_true",
        help="collect the registered models and enforce their snapshots and budgets",
    )
    add(
        "--model-budget-update",
        action="store_true",
        help="write missing and changed snapshots of the selected models; never deletes; budgets are still enforced",
    )
    add(
        "--model-budget-prune",
        action="store_true",
        help="delete snapshots whose model is no longer registered; prints each path",
    )
    add(
        "--model-budget-base",
        metavar="REF",
        help="what growth and loosened limits are held against: auto (default), off, or a git ref",
    )
    add(
        "--model-budget-report",
        action="append",
        default=[],
        metavar="KIND:PATH",
        help="write a report (repeatable); KIND is json, md, html, openmetrics, codequality, comment, badge, card or "
        "cyclonedx",
    )
    add(
        "--model-budget-mlflow",
        action="store_true",
        help="log to MLflow: MLFLOW_TRACKING_URI, else a local store in .modelbudget/ under the root",
    )
    add(
        "--model-budget-mlflow-required",
        action="store_true",
        help="log to MLflow, and fail the run when not all of it arrives; otherwise that is a warning",
    )
    add("--model-budget-file", metavar="PATH", help="the manifest, when it is not modelbudget.yaml in the root")
    add(
        "--model-budget-part",
        metavar="FILE",
        help="write what this run finds as a part of a run on many machines, which modelbudget merge judges",
    )
    add(
        "--model-budget-shard",
        metavar="I/N",
        help="check only the models that are dealt to shard I of N; with --model-budget-part",
    )
    add(
        "--model-budget-times",
        metavar="FILE",
        help="deal models by the seconds in this file, which modelbudget merge --times writes, and pytest-split",
    )
    parser.addini("model_budget", "as if --model-budget were given", type="bool", default=False)
    parser.addini("model_budget_file", "the manifest, when it is not modelbudget.yaml in the root")
    parser.addini("model_budget_base", "auto, off, or a git ref, as --model-budget-base")
    parser.addini("model_budget_times", "the seconds that models are dealt by, as --model-budget-times")


def enabled(config: pytest.Config) -> bool:
    """Whether models are collected in this run."""
    return was_requested(config) or bool(config.getini("model_budget"))


def was_requested(config: pytest.Config) -> bool:
    """Whether this run was started for its models, rather than by a project's ini file."""
    return any(config.getoption(flag) for flag in _SWITCHES)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Publish the hooks of `hooks.py`."""
    from pytest_modelbudget.plugin import hooks

    pluginmanager.add_hookspecs(hooks)
    pluginmanager.register(_BeforeCapture(), "modelbudget-before-capture")


class _BeforeCapture:
    """What has to be done before pytest takes hold of the standard streams."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_load_initial_conftests(self, early_config: pytest.Config) -> Generator[None]:
        """A run that was started without an output gets one that leads nowhere."""
        if _enabled_early(early_config):
            from pytest_modelbudget.system import intact, streams  # noqa: F401  # what is intact is noted when it is imported

            streams.open_missing_streams()
        return (yield)


def _enabled_early(early_config: pytest.Config) -> bool:
    """`enabled`, while options are still being read."""
    flags = vars(early_config.known_args_namespace)  # not in `early_config.option` yet
    return any(flags.get(flag) for flag in _SWITCHES) or bool(early_config.getini("model_budget"))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Have TensorFlow come up quietly, whichever conftest or test module of this run imports it; see to reports."""
    if _enabled_early(early_config):
        from pytest_modelbudget.backends import quiet_start

        stack = ExitStack()
        stack.enter_context(quiet_start.imports())
        early_config.add_cleanup(stack.close)
        options = early_config.known_args_namespace
        if "no:terminal" not in options.plugins:  # which xdist's workers have
            from pytest_modelbudget.plugin import reports

            reports.requested_reports(early_config, options)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the working parts when they are wanted."""
    config.addinivalue_line("markers", f"{MARKER}: a registered model, checked against its snapshot and budgets")
    if not enabled(config):
        for word in ("base", "report", "mlflow", "mlflow-required", "file", "shard", "times"):
            if config.getoption(f"--model-budget-{word}"):
                needed = "--model-budget-part=FILE" if word in ("shard", "times") else "--model-budget"
                raise pytest.UsageError(f"model-budget: --model-budget-{word} needs {needed} beside it")
        return
    from pytest_modelbudget.plugin import base, collect, controller, parts, progress, steady

    _refuse_unknown_topics()
    parts.prepare(config)
    base.prepare(config)
    collector = collect.Collector(config)
    config.pluginmanager.register(collector, "modelbudget-collector")
    config.pluginmanager.register(steady.SteadyRun(), "modelbudget-steady")
    config.pluginmanager.register(progress.ProgressLine(config), "modelbudget-progress")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(controller.Controller(config, collector.checklist), "modelbudget-controller")


def _refuse_unknown_topics() -> None:
    from pytest_modelbudget.errors import ModelBudgetError
    from pytest_modelbudget.system import debug

    try:
        debug.current()
    except ModelBudgetError as mistake:
        raise pytest.UsageError(str(mistake)) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put results on the report; here, because the fixture also works with the option off."""
    report = yield
    if RESULTS in item.stash:
        from pytest_modelbudget.plugin.items import annotate

        annotate(item, report, call, send=enabled(item.config))
    return report


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, str] | None:
    """`OVER BUDGET` and the like in place of `FAILED`."""
    if not report.failed or not hasattr(report, "modelbudget_state"):  # an expected failure has not failed
        return None
    from pytest_modelbudget.plugin.items import status

    return status(report)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Two summaries that should be equal: what changed from one to the other, instead of all their rows."""
    summary = getattr(sys.modules.get("pytest_modelbudget.summary"), "Summary", None)
    if op != "==" or summary is None or not (isinstance(left, summary) and isinstance(right, summary)):
        return None
    from pytest_modelbudget.diff import changes

    differ = list(map(str, changes(left, right)))
    return [
        f"{left!r} == {right!r}",
        *(differ or ["the same model, counted at other sizes, or with other notes or plans"]),
    ]


@pytest.fixture
def model_budget(request: pytest.FixtureRequest) -> ModelBudget:
    """Check a model inside an ordinary test: `model_budget.check(Encoder(), inputs="float32[B, 16]", params="25k")`."""
    from pytest_modelbudget.plugin.fixture import ModelBudget

    request.node.stash[RESULTS] = []  # the test may have been run before, by a plugin that reruns failures
    return ModelBudget(request.node, snapshots=enabled(request.config))
