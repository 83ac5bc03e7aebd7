"""Snapshots without a model: one failing item that names them, and prune, which deletes what is surely unowned."""

from __future__ import annotations

import pytest

from tests.project import SMALL, Project

DECORATED = """
    from pytest_modelbudget import model
    from fakenet import Model

    @model(inputs="float32[B, 32]")
    def encoder():
        return Model(dense=(32, 64))
"""


def test_a_renamed_model_leaves_its_old_snapshot(small: Project) -> None:
    """The new id has none yet, the old file is obsolete; update deletes nothing, prune does and says what."""
    small.manifest(SMALL.replace("small:", "tiny:", 1))
    result = small.run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "1 snapshot file has no model in modelbudget.yaml:",
            "  __model_budget__/small.yaml",
            "delete:  pytest --model-budget-prune",
            "NO SNAPSHOT modelbudget.yaml::tiny*",
            "OBSOLETE modelbudget.yaml::snapshot-files - 1 snapshot file has no model in*",
        ]
    )
    small.update().assert_outcomes(passed=1, failed=1)
    assert sorted(small.snapshots()) == ["__model_budget__/small.yaml", "__model_budget__/tiny.yaml"]
    pruned = small.plain("--model-budget-prune")
    assert pruned.ret == 0
    pruned.stdout.fnmatch_lines(["*pruning obsolete ones", "pruned __model_budget__/small.yaml"])
    assert list(small.snapshots()) == ["__model_budget__/tiny.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("sources: [registry:models]\n", "nothing is pruned: *no module 'registry'*", id="source"),
        pytest.param("modles: {}\n", "nothing is pruned: modelbudget.yaml:1: unknown key 'modles'*", id="unknown key"),
        pytest.param("models: [\n", "nothing is pruned: modelbudget.yaml:2: not YAML*", id="not YAML"),
        pytest.param("version: 2\n", "nothing is pruned: modelbudget.yaml:1: version 2*", id="version"),
        pytest.param(
            "models: {../x: zoo:small}\n", "nothing is pruned: modelbudget.yaml:1: bad model id*", id="bad id"
        ),
    ],
)
def test_prune_refuses_when_the_registry_is_not_whole(small: Project, text: str, words: str) -> None:
    """A model that failed to register is not a model that is gone."""
    small.manifest(text)
    result = small.plain("--model-budget-prune")
    assert result.ret == 1
    result.stdout.fnmatch_lines([words])
    assert list(small.snapshots()) == ["__model_budget__/small.yaml"]


def test_the_snapshot_of_a_model_with_a_mistake_is_kept(small: Project) -> None:
    """A typo in one model's budget does not make its snapshot obsolete."""
    small.manifest(SMALL + "        budgets: {parms: 1}\n")
    small.plain("--model-budget-prune").assert_outcomes(failed=1)
    assert list(small.snapshots()) == ["__model_budget__/small.yaml"]


def test_snapshots_of_other_files_are_not_touched(small: Project) -> None:
    """A manifest and test modules share a folder; each looks after its own files, and after nobody else's."""
    small.write("test_models.py", DECORATED)
    small.write("__model_budget__/notes.yaml", "mine: 1\n")
    small.write("__model_budget__/README.md", "mine\n")
    small.update().assert_outcomes(passed=2)
    everything = small.snapshots()
    assert len(everything) == 4
    small.plain("--model-budget-prune", "modelbudget.yaml").assert_outcomes(passed=1)
    small.plain("--model-budget-prune", "test_models.py").assert_outcomes(passed=1)
    small.plain("--model-budget-prune", "-k", "nothing")
    assert small.snapshots() == everything


def test_a_module_that_is_gone_leaves_files_to_the_manifest(small: Project) -> None:
    """When the test module itself was deleted, the manifest beside it names its snapshots."""
    module = small.write("test_models.py", DECORATED)
    small.update().assert_outcomes(passed=2)
    module.unlink()
    result = small.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["  __model_budget__/encoder.yaml"])


def test_a_builder_that_is_gone_leaves_a_file_to_its_module(project: Project) -> None:
    """The module itself names it."""
    project.write("test_models.py", DECORATED)
    project.update().assert_outcomes(passed=1)
    project.write("test_models.py", DECORATED.replace("def encoder", "def decoder"))
    result = project.run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["OBSOLETE test_models.py::snapshot-files*"])


def test_one_named_model_does_not_ask_for_the_others(small: Project) -> None:
    """`pytest modelbudget.yaml::x` runs x, whatever lies in the folder."""
    small.manifest(SMALL + '      other: {build: zoo:two_layers, inputs: "float32[B, 32]"}\n')
    small.update()
    small.manifest(SMALL)
    small.run("modelbudget.yaml::small").assert_outcomes(passed=1)


def test_prune_stays_in_the_tree(small: Project) -> None:
    """A snapshot folder that is a link to elsewhere is not looked into."""
    elsewhere = small.outside / "elsewhere"
    small.snapshot("small").parent.rename(elsewhere)
    (small.path / "__model_budget__").symlink_to(elsewhere)
    small.manifest(SMALL.replace("small:", "tiny:", 1))
    small.plain("--model-budget-prune")
    assert [file.name for file in elsewhere.iterdir()] == ["small.yaml"]


def test_a_file_that_cannot_be_deleted_fails_the_run(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path and the system's reason are told."""
    from pathlib import Path

    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.name == "small.yaml":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    small.manifest(SMALL.replace("small:", "tiny:", 1))
    small.update()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        result = small.plain("--model-budget-prune")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR __model_budget__/small.yaml: cannot be deleted (Permission denied)"])


def test_the_snapshots_of_a_deleted_module_are_found_by_its_neighbours(project: Project) -> None:
    """One test module of a folder speaks for those that are gone, and only one."""
    for name in ("one", "two", "three"):
        project.write(f"test_{name}.py", DECORATED.replace("encoder", name))
    project.update().assert_outcomes(passed=3)
    (project.path / "test_two.py").unlink()
    result = project.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["  __model_budget__/two.yaml", "OBSOLETE test_one.py::snapshot-files*"])
    project.plain("--model-budget-prune").assert_outcomes(passed=3)
    assert sorted(project.snapshots()) == ["__model_budget__/one.yaml", "__model_budget__/three.yaml"]
    project.run().assert_outcomes(passed=2)


def test_a_prune_counts_models_only(small: Project) -> None:
    """The item that names the files is no model."""
    small.write("__model_budget__/old.yaml", small.snapshot("small").read_text())
    result = small.plain("--model-budget-prune")
    result.stdout.fnmatch_lines(["1 model in * 1 ok", "pruned __model_budget__/old.yaml"])
