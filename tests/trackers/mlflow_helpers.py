"""What the tests of the MLflow tracker share."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_modelbudget import budget
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, check
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.trackers.mlflow import outbox
from tests.builders import dense, towers

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")

SECRET = "hunter2-secret"
SOURCES = Path(__file__).resolve().parents[2]


def result(summary: Summary, model: str = "two-towers", limits: dict[str, object] | None = None) -> Result:
    """A model that was checked, with its snapshot equal."""
    entry = ModelEntry(model, build="a:b", budgets=tuple(budget.parse(limits or {}, lambda _: None)))
    path = f"__model_budget__/{model.replace(':', '_')}.yaml"
    checked = check(entry, replace(summary, model=model), Snapshot(SnapshotState.EQUAL, path))
    return replace(checked, nodeid=f"modelbudget.yaml::{model}", seconds=0.5)


def wider(units: int) -> Summary:
    """The two towers with another width of the first one."""
    layers = [layer if layer.path != "dense" else dense("dense", 100, units, "user") for layer in towers().layers]
    return replace(towers(), layers=tuple(layers))


@contextmanager
def silent_server() -> Iterator[socket.socket]:
    """It takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


def free_port() -> int:
    """A port where nobody listens."""
    with silent_server() as server:
        return int(server.getsockname()[1])


def waiting(root: Path) -> list[Path]:
    """The entries in the outbox."""
    return outbox.entries(root / ".modelbudget" / "outbox")
