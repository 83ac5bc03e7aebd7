"""The reports that a run of pytest was asked for, looked at before the user's code runs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.session import report_files
from pytest_modelbudget.session.report_files import ReportFile
from pytest_modelbudget.trackers import tracker

_REQUESTED: pytest.StashKey[list[ReportFile]] = pytest.StashKey()

_NO_RUN = ("help", "version", "collectonly", "showfixtures", "show_fixtures_per_test", "markers", "cacheshow")
"""Options with which pytest tells something and checks nothing."""


def requested_reports(config: pytest.Config, options: Namespace | None = None) -> list[ReportFile]:
    """The reports of this run; the first call loads what they need and takes those of an earlier run away.

    `options` are those that are known before `config.option` is complete.

    Raises:
        pytest.UsageError: a report may not be written where it is wanted.
    """
    if _REQUESTED not in config.stash:
        options = options or config.option
        try:
            files = report_files.targets(
                options.model_budget_report,
                config.invocation_params.dir,
                protected=_configuration_files(config, options),
            )
        except ModelBudgetError as mistake:
            raise pytest.UsageError(f"--model-budget-report={mistake}") from None
        if not any(getattr(options, name, False) for name in _NO_RUN):
            report_files.prepare(files, config.rootpath)
            if options.model_budget_mlflow or options.model_budget_mlflow_required:
                tracker("mlflow")
        config.stash[_REQUESTED] = files
    return config.stash[_REQUESTED]


def _configuration_files(config: pytest.Config, options: Namespace) -> list[Path]:
    """Files that configure this run, wherever links to them lie."""
    chosen = options.model_budget_file or config.getini("model_budget_file")
    folder = config.invocation_params.dir if options.model_budget_file else config.rootpath
    paths = [config.rootpath / name for name in (*MANIFEST_NAMES, "pyproject.toml")]
    return [*paths, *([folder / str(chosen)] if chosen else []), *([config.inipath] if config.inipath else [])]
