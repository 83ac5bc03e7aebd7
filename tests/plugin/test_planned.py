"""Plans in runs of pytest: all doors, snapshots that only an update rewrites, workers, reports."""

from __future__ import annotations

import json

import pytest

from tests.gitrepo import CI_VARIABLES, ENVIRONMENT, repository
from tests.project import Project

ZOO = """
    import os
    import fakenet
    from fakenet import Model
    from pytest_modelbudget.planner import Training
    from pytest_modelbudget.summary import Plan, Point

    def plan(model, *, name, inputs, sizes, recipes, built_here, devices):
        [recipe] = recipes
        peak = 1000 * sizes["B"] + int(os.environ.get("MORE", "0"))
        kind = "training" if isinstance(recipe, Training) else "inference"
        return (Plan(kind, "", peak, phase="forward", timeline=(Point("forward", "dense", peak),)),)

    fakenet.plan = plan

    def small():
        return Model(dense=(32, 64))
"""
MANIFEST = """
    defaults: {inference: true}
    models:
      small:
        build: zoo:small
        inputs: "float32[B, 32]"
        training: {batch: 8}
        budgets: {training_peak_bytes: 8 kB}
"""


@pytest.fixture
def planned(project: Project) -> Project:
    """A project whose framework plans 1,000 bytes for each sample, and more when the environment says so."""
    project.write("zoo.py", ZOO)
    project.manifest(MANIFEST)
    return project


def test_estimates_are_rewritten_by_an_update_alone(planned: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kernels, another peak: the check passes and leaves the file; an update takes it."""
    planned.update()
    before = planned.snapshot("small").read_text(encoding="utf-8")
    assert before.endswith(
        'estimates:\n  training: {recipe: "batch 8, adamw, fp32", peak_bytes: 8000}\n'
        "  inference: {recipe: fp32, peak_bytes: 1000}\n"
    )
    monkeypatch.setenv("MORE", "-5")
    result = planned.run()
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*note:*")
    assert planned.snapshot("small").read_text(encoding="utf-8") == before
    result = planned.update()
    result.stdout.fnmatch_lines(["snapshots: wrote 1, 0 unchanged"])
    assert planned.snapshot("small").read_text(encoding="utf-8") == before.replace("8000", "7995").replace(
        "1000", "995"
    )


def test_a_peak_over_its_limit_fails_with_the_run(planned: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, the line of the manifest, and where the memory goes."""
    planned.update()
    monkeypatch.setenv("MORE", "1")
    result = planned.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "small: OVER BUDGET",
            "*training_peak_bytes: 8,001 bytes > 8,000 bytes (+1, +<0.1%)  [[]modelbudget.yaml:7]",
            "training (batch 8, adamw, fp32): peak 7.813 KiB in forward*",
            "inference (fp32): peak 1001 B in forward",
        ]
    )


@pytest.mark.slow
def test_workers_send_plans(planned: Project) -> None:
    """They reach the reports of the controller whole."""
    pytest.importorskip("xdist")
    planned.update()
    result = planned.run("-n", "2", "--model-budget-report=json:report.json")
    assert result.ret == 0
    [model] = json.loads((planned.path / "report.json").read_text(encoding="utf-8"))["models"]
    assert [plan["peak_bytes"] for plan in model["summary"]["plans"]] == [8_000, 1_000]
    assert model["summary"]["plans"][0]["timeline"] == [{"phase": "forward", "path": "dense", "bytes": 8_000}]


def test_decorator_and_fixture(planned: Project) -> None:
    """The same recipes and limits at the other doors; a mistake is an error at its line."""
    planned.write(
        "test_doors.py",
        """
        import pytest
        import zoo
        from fakenet import Model
        from pytest_modelbudget import ModelBudgetError, model
        from pytest_modelbudget.planner import Training

        @model(inputs="float32[B, 32]", training=Training(batch=2), budgets={"fits": "24 GB"})
        def decorated():
            return Model(dense=(32, 64))

        def test_fixture(model_budget):
            summary = model_budget.check(
                Model(dense=(32, 64)), "float32[B, 32]", inference={"batch": 3}, inference_peak_bytes="3 kB"
            )
            assert summary.plan("inference").peak_bytes == 3_000
            assert summary.plan("training") is None

        def test_mistake(model_budget):
            with pytest.raises(ModelBudgetError, match="training.batch: write a whole number"):
                model_budget.check(Model(dense=(32, 64)), "float32[B, 32]", training={"batch": "many"})
        """,
    )
    assert planned.update().ret == 0
    assert planned.run().ret == 0
    assert "training: {recipe: " in planned.snapshot("decorated").read_text(encoding="utf-8")


def test_growth_of_a_peak_is_held_against_the_base(planned: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimates of the committed snapshot are what it grows from."""
    planned.manifest(MANIFEST.replace("training_peak_bytes: 8 kB", "training_peak_bytes: {growth: +1%}"))
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    planned.update("--model-budget-base=off")
    repository(planned.path).commit("first")
    monkeypatch.setenv("MORE", "100")
    result = planned.run("--model-budget-base=HEAD")
    result.stdout.fnmatch_lines(["*training_peak_bytes growth: 8,100 bytes is +100 (+1.2%) on 8,000 bytes (HEAD*"])
    assert result.ret == 1
