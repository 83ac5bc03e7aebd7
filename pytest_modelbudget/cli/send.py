"""`modelbudget mlflow send`: what waits in the outbox goes to the server."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from pytest_modelbudget.cli.project import find_project


def run(options: Namespace) -> int:
    """Send what earlier runs could not."""
    from pytest_modelbudget.trackers import mlflow  # before the project's own modules can be found

    return mlflow.send_outbox(find_project(options.file, Path.cwd()).root)
