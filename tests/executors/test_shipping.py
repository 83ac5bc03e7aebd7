"""Which files of a project travel to a cluster, and what its workers have to have."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.executors import probe, shipping
from pytest_modelbudget.isolation import Surroundings
from tests.project import Project

FILES = ("nets.py", "lib/more.py", "m.keras", "__model_budget__/net.yaml", ".venv/pyvenv.cfg", ".venv/lib/x.py",
         "env/pyvenv.cfg", "env/x.py", "lib/__pycache__/more.pyc", ".modelbudget/cache", "ignored.bin", ".env")  # fmt: skip


@pytest.mark.parametrize("repository", [True, False], ids=["git", "a folder"])
def test_what_models_may_need_travels(project: Project, repository: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what git ignores or is hidden, environments, caches, snapshots, nor what lies elsewhere; it is unpacked as it was."""
    root = project.path / "root"
    for name in FILES:
        project.write(f"root/{name}", name)
    (project.outside / "secret").write_text("secret", encoding="utf-8")
    os.symlink(project.outside / "secret", root / "link")
    expected = {"nets.py", "lib/more.py", "m.keras", "ignored.bin"}
    if repository:
        project.write("root/.gitignore", "ignored.bin\n.venv/\nenv/\n__pycache__/\n")
        project.pytester.run("git", "init", "-q", str(root))
        expected = {"nets.py", "lib/more.py", "m.keras"}
    packed = shipping.packed_project(root)
    assert {*zipfile.ZipFile(io.BytesIO(packed)).namelist()} == expected
    shipping.unpack("run", packed, project.path / "there")
    folder = shipping.unpacked_folder("run")
    assert (folder / "lib/more.py").read_text(encoding="utf-8") == "lib/more.py"
    shipping.remove("run")
    assert not folder.exists()
    with pytest.raises(ModelBudgetError, match="did not reach this worker"):
        shipping.unpacked_folder("run")


def test_a_large_project_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest files are named, with the cure, and so is a limit that is none."""
    project.write("data.bin", "x" * 3000)
    monkeypatch.setenv("MODELBUDGET_PROJECT_LIMIT", "2 KiB")
    with pytest.raises(ModelBudgetError, match=r"at most 2.000 KiB are sent .*\n?.*largest: .*data.bin \(2.930 KiB\)"):
        shipping.packed_project(project.path)
    monkeypatch.setenv("MODELBUDGET_PROJECT_LIMIT", "much")
    with pytest.raises(ModelBudgetError, match="MODELBUDGET_PROJECT_LIMIT: "):
        shipping.packed_project(project.path)


def test_folders_travel_as_seen_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the search path below it, by their links too, and the variables that decide what is counted."""
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")
    (link := tmp_path.with_name("link")).symlink_to(tmp_path)
    monkeypatch.setattr("sys.path", ["/elsewhere", str(tmp_path), str(link / "src"), str(tmp_path / ".venv/lib")])
    environment = {"CI": "true", "MODELBUDGET_DEBUG": "trace", "KERAS_BACKEND": "jax"}
    monkeypatch.setattr(os, "environ", {"HOME": "/root", **environment})
    assert shipping.shipped_surroundings(tmp_path) == Surroundings((".", "src"), "src", environment)


HERE = {"Python": "3.11", "torch": "2.6.0", "distributed": "2024.5.0"}
NAMES = ("torch", "keras", "distributed")
GOOD = {**HERE, "keras": "3.12.0"}


@pytest.mark.parametrize(
    ("second", "line"),
    [
        pytest.param({"Python": "3.11", "distributed": "2024.5.0", "keras": "3.12.0"}, "tcp://b:2: torch is not installed: pip install torch==2.6.0", id="lacks a framework"),
        pytest.param({**GOOD, "Python": "3.12"}, "tcp://b:2: Python 3.12, here 3.11", id="another Python"),
        pytest.param({**GOOD, "distributed": "2025.1.0"}, "tcp://b:2: distributed 2025.1.0, here 2024.5.0", id="another Dask"),
        pytest.param({**GOOD, "keras": "3.13.0"}, "tcp://b:2: keras 3.13.0, tcp://a:1 has 3.12.0", id="workers that differ"),
        pytest.param(OSError("gone"), "tcp://b:2: it did not answer (OSError: gone)", id="no answer"),
    ],
)  # fmt: skip
def test_a_worker_that_cannot_count_is_named(second: dict[str, str] | Exception, line: str) -> None:
    """With what it lacks, or has in another version."""
    probe.check_alike(HERE, {"tcp://a:1": GOOD, "tcp://b:2": GOOD}, NAMES)
    with pytest.raises(ModelBudgetError) as error:
        probe.check_alike(HERE, {"tcp://a:1": GOOD, "tcp://b:2": second}, NAMES)
    assert str(error.value).splitlines() == [
        "--on: not every worker of the cluster can count these models:",
        f"  {line}",
    ]


def test_frameworks_that_models_name_are_asked_for() -> None:
    """Beside this package, the engine, and what is installed here."""
    names = probe.asked_for([ModelEntry("net", "nets:net", framework="tf_keras")])
    assert {"pytest-modelbudget", "distributed", "tf_keras"} <= {*names}
    assert probe.installed(["pytest", "nothing_of_the_kind"]).keys() == {"Python", "pytest"}
