"""`--jobs N`: several isolated workers, and the results of one."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_modelbudget.cli import parallel
from pytest_modelbudget.executors import Completed, Lost
from pytest_modelbudget.system import processes
from tests.cli.conftest import Command
from tests.project import SMALL


def report(path: Path) -> str:
    """A JSON report without how long each model took."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for model in data["models"]:
        model["seconds"] = 0
    return json.dumps(data)


def told(out: str) -> list[str]:
    """What was said, whatever came first, without how long it took."""
    return sorted(re.sub(r"[\d.]+ s\b", "", line) for line in out.splitlines())


@pytest.mark.slow
def test_results_are_those_of_one_worker(isolated: Command) -> None:
    """Of crashes, limits, mistakes, sources and models that stay here: the same report, and with each what it printed."""
    serial = isolated("check", "--report", "json:serial.json", "--report", "md:serial.md")
    parallel = isolated("check", "--report", "json:jobs.json", "--report", "md:jobs.md", "--jobs", "2")
    assert (serial.code, parallel.code) == (1, 1)
    path = isolated.project.path
    assert report(path / "jobs.json") == report(path / "serial.json")
    assert told(parallel.out) == told(serial.out)
    callers = (path / "calls").read_text(encoding="utf-8").split()
    assert len(callers) == len({*callers})  # each process called the source once


def test_an_interrupt_ends_all_workers(isolated: Command) -> None:
    """What has no result by then was not checked, as in a run of one worker."""
    isolated.write("stops.py", "import time\ndef interrupts(): raise KeyboardInterrupt\ndef sleeps(): time.sleep(60)\n")
    isolated.project.manifest(
        """
        models:
          sleeps: {build: "stops:sleeps"}
          interrupts: {build: "stops:interrupts"}
          waits: {build: "stops:sleeps"}
        """
    )
    before = set(processes.descendants(os.getpid()))
    done = isolated("check", "--jobs", "2")
    assert done.code == 2
    assert "3 models in 0.0 s: 3 not checked" in done.out
    assert not set(processes.descendants(os.getpid())) - before


@pytest.mark.parametrize("reason", ["no more", ""])
def test_an_executor_that_is_lost_is_said(isolated: Command, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """What was counted is kept; the rest was not checked, and the run fails, also where nobody says why."""

    def lost(*_: object) -> Iterator[Completed]:
        raise Lost(reason)
        yield

    isolated.project.manifest(SMALL)
    monkeypatch.setattr(parallel, "count_all", lost)
    done = isolated("check", "--jobs", "2")
    assert (done.code, done.err) == (1, f"ERROR {reason or 'the executor was lost'}\n")
    assert "NOT CHECKED" in done.out


@pytest.mark.parametrize("jobs", ["0", "-1", "many", "1.5", "9999999"])
def test_a_number_of_jobs_is_a_number(modelbudget: Command, jobs: str) -> None:
    """From 1 up."""
    modelbudget.project.manifest(SMALL)
    done = modelbudget("check", f"--jobs={jobs}")
    assert (done.code, done.out) == (2, "")
    assert "write --jobs 4, or --jobs auto" in done.err


def test_a_cluster_without_dask_names_the_extra(isolated: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted."""
    isolated.project.manifest(SMALL)
    monkeypatch.delitem(sys.modules, "pytest_modelbudget.executors.dask", raising=False)
    for name in ("dask", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    done = isolated("check", "--on", "dask")
    assert (done.code, done.out) == (2, "")
    assert "pip install 'pytest-modelbudget[dask]'" in done.err


def test_models_that_are_not_isolated_are_counted_here(modelbudget: Command) -> None:
    """One after the other, which is said."""
    modelbudget.project.manifest(SMALL)
    assert modelbudget("update").code == 0
    done = modelbudget("check", "--jobs", "2")
    assert done.code == 0
    assert "counted in this process, one after the other" in done.err
