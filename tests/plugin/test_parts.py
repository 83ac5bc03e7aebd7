"""Runs that write a part: what they are refused, what they leave to the merge, and any way to choose the models."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_modelbudget.parts import Part, file
from pytest_modelbudget.parts.merging import merged, problems_of
from pytest_modelbudget.plugin.collect import NO_MODEL
from tests.project import MODULE, USE_FAKENET, Project

MANIFEST = """
    models:
      a: {build: zoo:small, inputs: "float32[B, 32]", tags: [edge]}
      b: {build: zoo:small, inputs: "float32[B, 32]", tags: [edge]}
      c: {build: zoo:small, inputs: "float32[B, 32]"}
      typo: {buld: zoo:small}
"""
NODES = {*(f"modelbudget.yaml::{name}" for name in ("a", "b", "c", "typo")), "test_models.py::decorated", "test_models.py::test_fixture"}  # fmt: skip


@pytest.fixture
def models(project: Project) -> Project:
    """Models of a manifest with a mistake, and of a test module."""
    project.manifest(MANIFEST)
    project.write("test_models.py", MODULE)
    project.update()
    return project


def read(project: Project, *numbers: int) -> list[Part]:
    """The parts of those numbers."""
    return [file.read(project.path / f"{number}.part") for number in numbers]


def version() -> str:
    """The installed one."""
    from importlib import metadata

    return metadata.version("pytest-modelbudget")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--model-budget-part=p.part", "--model-budget-shard=9/8"], "*'9/8' is no shard: shards of 8 are 1/8 to 8/8*", id="no shard"),
        pytest.param(["--model-budget", "--model-budget-shard=1/2"], "*say where this part goes (--model-budget-part=FILE)*modelbudget merge*", id="a shard that is no part"),
        pytest.param(["--model-budget", "--model-budget-times=t.json"], "*--model-budget-times deals models to parts*", id="times without a part"),
        pytest.param(["--model-budget-part=p.part", "--model-budget-prune"], "*--model-budget-prune cannot be used with a part*: start pytest --model-budget-prune without one*", id="prune"),
        pytest.param(["--model-budget-part=p.part", "--model-budget-report=md:a.md"], "*--model-budget-report cannot be used with a part, which is no verdict: modelbudget merge*", id="a report"),
        pytest.param(["--model-budget-part=p.part", "--model-budget-mlflow"], "*--model-budget-mlflow cannot be used with a part*", id="a tracker"),
        pytest.param(["--model-budget-part=modelbudget.yaml"], "*modelbudget.yaml is there, and is no part: name another file*", id="over a manifest"),
    ],
)  # fmt: skip
def test_what_a_part_is_refused(project: Project, options: list[str], words: str) -> None:
    """A usage error with the cure, before anything runs."""
    project.manifest(MANIFEST)
    result = project.plain(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])
    assert not (project.path / "p.part").exists()


def chosen(options: str) -> list[list[str]]:
    """The options of three runs; `%i` is the number of each."""
    return [options.replace("%i", str(number)).split() for number in (1, 2, 3)]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(chosen("--model-budget-shard=%i/3"), id="dealt"),
        pytest.param(chosen("--splits 3 --group %i"), id="pytest-split"),
        pytest.param(chosen("--cdist-group=%i/3"), id="pytest-cdist", marks=pytest.mark.slow),
        pytest.param([["-k", "edge"], ["-k", "decorated or typo"], ["-k", "not edge and not decorated and not typo"]], id="by words", marks=pytest.mark.slow),
        pytest.param([["--model-budget-shard=1/3", "-n", "2"], ["--model-budget-shard=2/3"], ["--model-budget-shard=3/3"]], id="dealt, one on two workers", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_any_splitter_gives_a_whole_run(models: Project, options: list[list[str]]) -> None:
    """Each part knows of all models, whatever was deselected, and together they checked each of them once."""
    codes = {
        (models.alone if "-n" in words else models.plain)(f"--model-budget-part={number}.part", *words).ret
        for number, words in enumerate(options, 1)
    }
    parts = read(models, 1, 2, 3)
    assert all(set(part.nodes) == NODES for part in parts)
    assert problems_of(parts, version()) == []
    assert {result.nodeid for result in merged(parts).results} == NODES
    assert codes == {0, 1}


def test_bazel_deals(models: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables choose the shard where none is given; a folder gets a file of its number."""
    (models.path / "outputs").mkdir()
    monkeypatch.setenv("TEST_TOTAL_SHARDS", "2")
    monkeypatch.setenv("TEST_SHARD_STATUS_FILE", str(models.path / "status"))
    for index in (0, 1):
        monkeypatch.setenv("TEST_SHARD_INDEX", str(index))
        models.plain("--model-budget-part=outputs")
    parts = [file.read(models.path / "outputs" / f"modelbudget-{number}.part") for number in (1, 2)]
    assert problems_of(parts, version()) == []
    assert [part.head.shard for part in parts] == ["1/2", "2/2"]
    assert (models.path / "status").exists()


def test_a_shard_without_models_is_green(small: Project) -> None:
    """Where there are more shards than models; ordinary tests run in each shard."""
    result = small.plain("--model-budget-part=2.part", "--model-budget-shard=2/2")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["part 2/2: 0 of 1 model in 2.part; no verdict yet: *"])
    small.write("test_plain.py", "def test_plain(): pass\n")
    small.plain("--model-budget-part=2.part", "--model-budget-shard=2/2").assert_outcomes(passed=1, deselected=1)


def test_a_run_without_models_is_left_to_the_merge(project: Project) -> None:
    """It is no usage error of the part."""
    result = project.plain("--model-budget-part=1.part")
    assert result.ret == 0
    assert NO_MODEL not in result.stdout.str() + result.stderr.str()


def test_failures_beside_models_are_told(small: Project) -> None:
    """A test that fails for another reason, and files that cannot be collected, fail the merge as they would the run."""
    small.write("test_plain.py", "def test_plain(): assert 0\n")
    assert small.plain("--model-budget-part=1.part").ret == 1
    [part] = read(small, 1)
    assert merged([part]).failed
    assert merged([part]).notes == ("a test failed in the run of " + part.name + ": test_plain.py::test_plain",)
    small.write("test_plain.py", "")
    small.write("conftest.py", USE_FAKENET + "\n    def pytest_modelbudget_finish(): raise ValueError('broken')\n")
    assert small.plain("--model-budget-part=1.part").ret == 1
    [part] = read(small, 1)
    assert merged([part]).notes == (f"the run of {part.name} ended with exit code 1",)
    small.write("conftest.py", USE_FAKENET)
    small.write("test_plain.py", "import nowhere\n")
    assert small.plain("--model-budget-part=1.part", "--continue-on-collection-errors").ret == 1
    [part] = read(small, 1)
    assert [finding.kind for finding in part.head.findings] == ["not collected"]


def test_a_part_of_an_interrupted_run_is_not_green(models: Project) -> None:
    """Models that were not checked any more are so in its part, which fails itself."""
    models.write("test_first.py", "import pytest\ndef test_stop(): pytest.exit('enough', returncode=0)\n")
    assert models.plain("--model-budget-part=1.part", "test_first.py", "modelbudget.yaml", "test_models.py").ret != 0
    [part] = read(models, 1)
    assert {result.state.value for result in part.results} == {"NOT CHECKED"}


def test_a_fixture_that_nobody_announced(project: Project) -> None:
    """Such a test cannot be dealt or missed: its part says how to name it, and is not written."""
    project.write(
        "test_models.py",
        """
        from fakenet import Model

        def test_hidden(request):
            request.getfixturevalue("model_budget").check(Model(dense=(32, 3)), inputs="float32[B, 32]", params="1k")
        """,
    )
    result = project.plain("--model-budget-part=1.part")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["ERROR test_models.py::test_hidden checks a model and does not name the fixture model_budget*"]
    )
    assert not (project.path / "1.part").exists()


@pytest.mark.parametrize("folder", ["nowhere/1.part", "modelbudget.yaml/1.part"])
def test_a_part_that_cannot_be_written(small: Project, folder: str) -> None:
    """A folder that is missing is made; where there is none to make, the run fails and says why."""
    result = small.plain(f"--model-budget-part={folder}")
    if folder.startswith("nowhere"):
        assert result.ret == 0
        assert (small.path / folder).exists()
    else:
        assert result.ret == 1
        result.stdout.fnmatch_lines(["ERROR the part *1.part cannot be written (Not a directory)"])
        assert Path(small.path / "modelbudget.yaml").is_file()
