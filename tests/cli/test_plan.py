"""`modelbudget plan`: recipes from the manifest and from the command line, devices, sizes, growth, exit codes."""

from __future__ import annotations

import json

import pytest

from pytest_modelbudget.planner import fitting
from pytest_modelbudget.summary import Fit, Plan
from tests.cli.conftest import Command

ZOO = """
    import fakenet
    from fakenet import Model
    from pytest_modelbudget import model
    from pytest_modelbudget.planner import Training
    from pytest_modelbudget.summary import Part, Plan

    def plan(model, *, name, inputs, sizes, recipes, built_here, devices=()):
        "1,000 bytes for each sample, half of it in half precision, beside 10,000 of weights; 64 samples at most."
        [recipe] = recipes
        batch = sizes["B"]
        if batch > 64:
            raise ValueError("too many samples")
        each = 500 if recipe.precision == "bf16" else 1000
        kind = "training" if isinstance(recipe, Training) else "inference"
        parts = (Part("param", "dense", 10_000), Part("activation", "dense", each * batch))
        return (Plan(kind, "", 10_000 + each * batch, phase="forward", path="dense", parts=parts),)

    fakenet.plan = plan

    def small():
        return Model(dense=(32, 64))

    @model(inputs="float32[B, 32]", training={"batch": 2})
    def decorated():
        return Model(dense=(32, 64))
"""
MANIFEST = """
    models:
      small:
        build: zoo:small
        inputs: "float32[B, 32]"
        batch: 3
        training: {batch: 8, optimizer: sgd}
        inference: {precision: bf16}
        budgets: {fits: 20 kB, params: 1k}
      plain: {build: "zoo:small", inputs: "float32[B, 32]"}
"""
SMALL = ("--inputs", "float32[B, 32]")


@pytest.fixture
def planning(modelbudget: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A project whose framework plans by a formula, and devices without a context."""
    monkeypatch.setattr(
        fitting, "_fit_of", lambda plan, device: Fit(device, fitting.device_capacity(device), plan.peak_bytes)
    )
    modelbudget.write("zoo.py", ZOO)
    modelbudget.project.manifest(MANIFEST)
    return modelbudget


def test_a_model_of_the_manifest(planning: Command) -> None:
    """Its recipes and its devices, with what would help and the largest batch; limits of other kinds stay out."""
    done = planning("plan", "small")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "training (batch 8, sgd, fp32): peak 17.58 KiB in forward of dense; weights 9.766 KiB, activations 7.812 KiB",
        "  precision: bf16 would save 3.906 KiB",
        "  gradient_accumulation: 2, batch: 4 would save 3.906 KiB",
        "  fits 20 kB (needs 17.58 KiB of 19.53 KiB)",
        "  largest B on 20 kB: 10",
        "inference (bf16): peak 11.23 KiB in forward of dense; weights 9.766 KiB, activations 1.465 KiB",
        "  fits 20 kB (needs 11.23 KiB of 19.53 KiB)",
        "  largest B on 20 kB: 20",
    ]


def test_serving_of_a_framework_that_does_not_plan_it(planning: Command) -> None:
    """It is not known, with the reason, and the recipe is that of the command line."""
    done = planning("plan", "small", "--serving", "requests=64,tokens=32k")
    assert (done.code, done.out.splitlines()[:1]) == (
        1,
        ["serving (bf16, 64 requests, 32768 tokens each): peak ? (not planned: serving is planned for torch models, not "
         "for those of fakenet)"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "first"),
    [
        pytest.param(["plain"], "training (adamw, fp32): peak 10.74 KiB", id="no recipe"),
        pytest.param(["zoo:small", *SMALL], "training (adamw, fp32): peak 10.74 KiB", id="a reference"),
        pytest.param(["zoo:decorated"], "training (batch 2, adamw, fp32): peak 11.72 KiB", id="a decorated builder"),
        pytest.param(["plain", "--training", "batch=4"], "training (batch 4, adamw, fp32): peak 13.67 KiB", id="a recipe"),
        pytest.param(
            ["plain", "--training", "batch=4, optimizer=sgd,optimizer_options.momentum=0.9"],
            "training (batch 4, sgd (momentum=0.9), fp32): peak", id="a longer one",
        ),
        pytest.param(
            ["plain", "--training", "{batch: 4, optimizer_options: {betas: [0.9, 0.99]}}"],
            "training (batch 4, adamw (betas=[0.9, 0.99]), fp32): peak", id="in braces",
        ),
        pytest.param(["small", "--training", "batch=4"], "training (batch 4, sgd, fp32): peak", id="over the manifest's"),
        pytest.param(["small", "--inference", "batch=4"], "inference (batch 4, bf16): peak", id="one kind alone"),
        pytest.param(["plain", "--training", ""], "training (adamw, fp32): peak", id="an empty recipe"),
    ],
)  # fmt: skip
def test_recipes(planning: Command, words: list[str], first: str) -> None:
    """What is planned, and that nothing else is."""
    done = planning("plan", *words)
    assert done.err == ""
    lines = [line for line in done.out.splitlines() if not line.startswith("  ")]
    assert lines[0].startswith(first)
    assert len(lines) == 1


def test_a_device_that_is_too_small(planning: Command) -> None:
    """Exit code 1; the devices of the manifest stay out when others are named."""
    done = planning("plan", "small", "--training", "batch=8", "--device", "12 kB", "--device", "9 kB")
    assert done.code == 1
    assert (
        "  does not fit 12 kB (needs 17.58 KiB of 11.72 KiB); does not fit 9 kB (needs 17.58 KiB of 8.789 KiB)"
        in done.out
    )
    assert "  largest B on 12 kB: 2" in done.out
    assert "  not even B=1 fits 9 kB" in done.out
    assert "20 kB" not in done.out


def test_a_largest_size_that_cannot_be_told_says_why(planning: Command) -> None:
    """A size that the model does not take is no answer, and neither is silence."""
    done = planning("plan", "small", "--training", "batch=8", "--device", "200 kB")
    assert "largest B on 200 kB: not known, B=190 is not planned: ValueError: too many samples (zoo.py:" in done.out


def test_growth(planning: Command) -> None:
    """The law of each number in a dimension; what is not known says why."""
    done = planning("plan", "plain", "--growth", "B")
    assert done.out.splitlines()[-4:] == [
        "flops in B: linear (4.096 kFLOPs for each; 8.192 kFLOPs at 2, 16.38 kFLOPs at 4, 32.77 kFLOPs at 8)",
        "activation_bytes in B: ? (activation_bytes is not known at B=2)",
        "training_peak_bytes in B: linear (1000 B for each; 11.72 KiB at 2, 13.67 KiB at 4, 17.58 KiB at 8)",
        "bytes_moved in B: ? (bytes_moved is not known at B=2)",
    ]


def test_json(planning: Command) -> None:
    """Data that reads back."""
    data = json.loads(planning("plan", "small", "--json").out)
    assert [Plan.from_dict(plan).peak_bytes for plan in data["plans"]] == [18_000, 11_500]
    assert data["model"] == "small"


def test_a_run_that_cannot_be_planned(planning: Command) -> None:
    """Exit code 1 with the reason and the user's line."""
    done = planning("plan", "plain", "--training", "batch=65")
    assert done.code == 1
    assert done.out.startswith("training (batch 65, adamw, fp32): peak ? (not planned: ValueError: too many samples (")
    assert "zoo.py:" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--training", "batch"], "--training: 'batch': write e.g. batch=8", id="no value"),
        pytest.param(["--training", "batch=x"], "training.batch: write a whole number, at least 1, not 'x'", id="no number"),
        pytest.param(["--training", "bach=1"], "unknown key 'bach', did you mean 'batch'", id="no key"),
        pytest.param(["--inference", "{batch"], "--inference: '{batch' cannot be read", id="no mapping"),
        pytest.param(["--device", "24"], "'24'", id="no unit"),
        pytest.param(["--training", "batch=\x1b[2J,x=::error::a::b"], "modelbudget: ", id="hostile"),
    ],
)  # fmt: skip
def test_mistakes(planning: Command, words: list[str], message: str) -> None:
    """Exit code 2, and what would be right."""
    done = planning("plan", "plain", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "\x1b" not in done.err


def test_a_snapshot(planning: Command) -> None:
    """What was recorded, and that nothing was."""
    planning("update", "plain")
    done = planning("plan", "__model_budget__/plain.yaml")
    assert (done.code, "nothing is recorded there of planned runs" in done.err) == (2, True)
    planning("update", "small")
    done = planning("plan", "__model_budget__/small.yaml")
    assert done.out.splitlines() == [
        "training (batch 8, sgd, fp32): peak 17.58 KiB",
        "inference (bf16): peak 11.23 KiB",
    ]
