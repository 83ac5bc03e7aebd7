"""`--on`: a Dask cluster gives the results of one worker, and a worker or scheduler that dies is said."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.executors import probe, shipping
from tests.cli.conftest import Command
from tests.executors.test_local import report, told

pytestmark = pytest.mark.slow

KILLERS = """
    import os, signal, time
    from speakers import of_width

    def kills_its_worker():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    def kills_the_scheduler():
        os.kill(int(open("scheduler.pid").read()), signal.SIGKILL)
        time.sleep(60)
"""
AROUND = """
    models:
      a: {{build: "killers:of_width", args: [1], inputs: "float32[B, 32]"}}
      b: {{build: "killers:{0}", inputs: "float32[B, 32]"}}
      c: {{build: "killers:of_width", args: [2], inputs: "float32[B, 32]"}}
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """The address of a cluster with one worker, which is started anew when it dies.

    It is there before each test, which drops what it imported itself.
    """
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    import_module("pytest_modelbudget.executors.dask")
    options = {"n_workers": 1, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with dask.config.set(
        {"distributed.scheduler.allowed-failures": 0, "distributed.nanny.environ.PYTHONHASHSEED": "7"}
    ):
        running = distributed.LocalCluster(**options, memory_limit=None, silence_logs=50)
    with running:
        yield running.scheduler_address


def test_results_are_those_of_one_worker(isolated: Command, cluster: str) -> None:
    """Of crashes, limits, mistakes and sources: the same report from a cluster of its own and from another one."""
    isolated.git("init", "-q")
    serial = isolated("check", "--report", "json:serial.json")
    own = isolated("check", "--report", "json:own.json", "--on", "dask", "--jobs", "2")
    other = isolated("check", "--report", "json:other.json", "--on", cluster)
    assert (serial.code, own.code, other.code) == (1, 1, 1)
    assert told(own.out) == told(serial.out)
    expected, *reports = (report(isolated.project.path / f"{name}.json") for name in ("serial", "own", "other"))
    assert reports == [expected, expected]


def test_a_worker_that_dies_costs_the_model_that_it_was_at(isolated: Command, cluster: str) -> None:
    """The next one is counted by the worker that is started in its place, which gets the project's files too."""
    isolated.write("killers.py", KILLERS)
    isolated.project.manifest(AROUND.format("kills_its_worker"))
    done = isolated("check", "--on", cluster)
    assert done.code == 1
    assert "b: BUILD ERROR\nthe worker of the cluster died, at tcp://127.0.0.1:" in done.out
    assert "counted 32 params" in done.out
    assert "counted 64 params" in done.out


def test_a_scheduler_that_dies_ends_the_run(isolated: Command, tmp_path: Path) -> None:
    """What was counted before is kept, the rest was not checked; it is over soon."""
    file = tmp_path / "scheduler.json"
    with ExitStack() as stack:

        def start(module: str, *words: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.{module}", "--scheduler-file", str(file), *words]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        start("dask_worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path / "local"))
        while not file.exists() and scheduler.poll() is None:
            time.sleep(0.1)
        isolated.write("killers.py", KILLERS)
        isolated.write("scheduler.pid", str(scheduler.pid))
        isolated.project.manifest(AROUND.format("kills_the_scheduler"))
        done = isolated("check", "--on", str(file))
    assert done.code == 1
    assert "counted 32 params" in done.out
    assert [line.split()[0] for line in done.out.splitlines() if line.endswith("NOT CHECKED")] == ["b", "c"]
    assert done.err.startswith("ERROR the connection to the Dask scheduler was lost")


def test_a_worker_that_comes_late_and_is_not_like_the_others_fails_its_models(tmp_path: Path) -> None:
    """It says what it has instead, and gets no files."""
    from pytest_modelbudget.executors.dask import RunPlugin

    worker = SimpleNamespace(address="tcp://late:1", local_directory=str(tmp_path))
    asyncio.run(RunPlugin("run", b"packed", {**probe.installed(["dask"]), "dask": "1.0"}).setup(worker))
    with pytest.raises(ModelBudgetError, match=r"tcp://late:1: dask [\d.]+, here 1.0"):
        shipping.unpacked_folder("run")
    shipping.remove("run")
    assert not list(tmp_path.iterdir())


def test_the_probe_runs_where_this_package_is_missing() -> None:
    """It travels as its code, and says so."""
    from distributed.protocol import pickle

    from pytest_modelbudget.executors.dask import probed_by_value

    with probed_by_value():
        packed = pickle.dumps(probe.installed)
    code = (
        "import pickle, sys; sys.modules['pytest_modelbudget'] = None\n"
        "print(pickle.load(sys.stdin.buffer)(['pytest', 'nothing_of_the_kind']))"
    )
    answer = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True, check=True).stdout.decode()
    assert answer.strip() == str(probe.installed(["pytest"]))


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        pytest.param("tcp://127.0.0.1:9", "no Dask scheduler answers there", id="nobody listens"),
        pytest.param("nowhere", "write tcp://scheduler:8786", id="no address"),
        pytest.param("tcp://localhost", "(missing port number in address 'localhost')", id="no port"),
        pytest.param("ftp://localhost:9", "(unknown address scheme 'ftp'", id="another protocol"),
        pytest.param("zoo.py", "no file that dask scheduler --scheduler-file wrote", id="another file"),
        pytest.param("tls://127.0.0.1:9", "has no certificates", id="no certificates"),
    ],
)
def test_a_cluster_that_is_not_there_is_said(
    isolated: Command, monkeypatch: pytest.MonkeyPatch, where: str, reason: str
) -> None:
    """With what may be written, at once; no model is counted."""
    monkeypatch.setattr("pytest_modelbudget.executors.dask._SECONDS_TO_CONNECT", 1)
    isolated.write("zoo.py", "")
    done = isolated("check", "--on", where)
    assert (done.code, "counted" in done.out) == (2, False)
    assert reason in done.err
