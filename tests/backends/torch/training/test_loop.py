"""What loops do with outputs and gradients, against torch's own allocator in real loops, and what plans say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from pytest_modelbudget.planner.assumptions import with_gradients_until_backward
from pytest_modelbudget.planner.recipe import ZeroGrad
from pytest_modelbudget.units import size
from tests.real_steps import KERNELS, measured, sgd

ROWS, CLASSES = 64, 2_000
needs_torchs_own = pytest.mark.skipif(
    not hasattr(nn.functional, "linear_cross_entropy"), reason="torch has no such loss yet"
)


class Scores(nn.Module):
    """Returns its scores beside the loss, and a branch that no loss is made of."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)
        self.aside = nn.Sequential(nn.Linear(width, 400), nn.Tanh())

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.embed(x))
        scores = self.head(hidden)
        return scores, self.aside(hidden), functional.cross_entropy(scores, targets)


INPUTS = {"x": f"float32[{ROWS}, 32]", "targets": f"int64[{ROWS}] < {CLASSES}"}


ANY_ROWS = {"x": "float32[B, 32]", "targets": f"int64[B] < {CLASSES}"}


def planned(inputs: Mapping[str, str] = INPUTS, **training: Any) -> Any:
    """The plan of a step on this machine's kernels."""
    return plan(Scores, inputs, training={"optimizer": "sgd", "kernels": KERNELS, **training})


def real_peak(outputs: str, zero_grad: str) -> int:
    """Bytes at the peak of three steps of a loop that treats outputs and gradients so."""
    model = Scores()
    data = {"x": torch.rand(ROWS, 32), "targets": torch.zeros(ROWS, dtype=torch.int64)}
    optimizer, held = sgd(list(model.parameters())), dict[str, Any]()

    def step() -> None:
        if zero_grad == "before":
            model.zero_grad()
        held["out"] = model(**data)
        loss = held["out"][2]
        if outputs == "dropped":
            held.clear()
        if zero_grad == "before-backward":
            model.zero_grad()
        loss.backward()
        if outputs == "until-step":
            held.clear()
        optimizer.step()
        if zero_grad == "after":
            model.zero_grad()

    there = {tensor.untyped_storage().data_ptr(): tensor for tensor in (*model.parameters(), *data.values())}
    return measured(step, 3) + sum(tensor.untyped_storage().nbytes() for tensor in there.values())


@pytest.mark.skipif(KERNELS is None, reason="not known what this machine's kernels take")
@pytest.mark.parametrize(
    ("outputs", "zero_grad"),
    [
        pytest.param("kept", "before", id="as assumed"),
        pytest.param("dropped", "after", id="the loss alone is left"),
        pytest.param("dropped", "before-backward", id="a function that returns the loss"),
        pytest.param(
            "until-step", "never", id="a function that runs the backward pass, and gradients that are added to"
        ),
        pytest.param("kept", "before-backward", id="a script"),
    ],
)
def test_a_loop_is_planned_as_it_runs(outputs: str, zero_grad: str) -> None:
    """The only number among what a model returns is its loss; the allocator of a real loop has the same peak."""
    truth = real_peak(outputs, zero_grad)
    assert planned(outputs=outputs, zero_grad=zero_grad).peak_bytes == pytest.approx(truth, rel=2e-4)


def test_what_was_assumed_is_said_where_it_matters() -> None:
    """One line for each habit that the recipe leaves open, with the peak of a recipe that says the other one."""
    dropped, kept = planned(outputs="dropped", zero_grad="before"), planned(outputs="kept", zero_grad="before")
    [note] = [note for note in planned().notes if "outputs" in note]
    assert dropped.peak_bytes < 0.95 * kept.peak_bytes == 0.95 * planned().peak_bytes
    assert note.endswith(f"with outputs: dropped the peak is {size(dropped.peak_bytes)}")
    for said in ({"loop": "torch"}, {"outputs": "kept", "zero_grad": "before"}):
        assert not [note for note in planned(**said).notes if "assumed" in note]


def test_many_ranks_are_told_a_bound() -> None:
    """No second run is recorded of a sharded step: what the outputs take at the peak is the most that is saved."""
    made = planned(ANY_ROWS, sharding={"fsdp": 2}, kernels="cuda", batch=9_000)
    [note] = [note for note in made.notes if "outputs" in note]
    assert note.endswith(f"the peak may be down to {size(made.peak_bytes - made.by_role()['output'])}")


def test_gradients_that_stay_longer_are_told() -> None:
    """Gradients of the last step beside the activations of a deep model make the peak, with no other run to know it."""

    def build() -> nn.Module:
        return nn.Sequential(*(nn.Linear(200, 200) for _ in range(12)))

    def of(**keys: Any) -> Any:
        return plan(build, "float32[400, 200]", training={"optimizer": "none", "outputs": "kept", **keys})

    other = of(zero_grad="before-backward")
    [note] = [note for note in of().notes if "zero_grad" in note]
    assert other.peak_bytes > 1.05 * of().peak_bytes
    assert note.endswith(f"with zero_grad: before-backward the peak is {size(other.peak_bytes)}")


class Words(nn.Module):
    """A language model that is nearly all head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 64), nn.Linear(64, 3_000, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embed(ids))
        return out


@pytest.mark.parametrize("loss", ["liger", "chunked", pytest.param("linear_cross_entropy", marks=needs_torchs_own)])
def test_gradients_of_a_fused_loss_stay_longer(loss: str) -> None:
    """What makes the head's gradient before the backward pass has it beside that of the last step, as a run has."""

    def traced(zero_grad: ZeroGrad) -> MemoryTrace:
        recipe = Training(optimizer="none", loss=loss, zero_grad=zero_grad)
        return record_step(RunnableModel("model", meta_copy(Words()), parse("int64[2, 8]")), {}, recipe)

    assert with_gradients_until_backward(traced("before")).peak() == traced("before-backward").peak()


def test_a_verdict_that_hangs_on_the_loop() -> None:
    """A device that only one of the loops fits is named, however near the peaks are."""

    def of(device: str, **keys: Any) -> Any:
        return plan(Scores, ANY_ROWS, training={"batch": 9_000, "zero_grad": "before", **keys}, devices=[device])

    [kept], [dropped] = (of("1 GiB", outputs=outputs).fits for outputs in ("kept", "dropped"))
    between = f"{(kept.needs + dropped.needs) // 2**21} MiB"
    [note] = [note for note in of(between).notes if "outputs" in note]
    assert note.endswith(f", and it fits {between}")
    assert not [note for note in of("10 GiB").notes if "it fits" in note or "does not fit" in note]


class OwnLoss(nn.Module):
    """Returns the cross entropy of its scores in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(x).float(), targets)


def test_a_loop_with_a_loss_of_its_own() -> None:
    """A model that returns scores alone is planned with torchtitan's loss, as if it had made that itself."""
    recipe = {"optimizer": "none", "precision": "bf16", "loop": "torchtitan"}
    own = plan(OwnLoss, {"x": INPUTS["x"], "targets": f"int64[{ROWS}]"}, training=recipe)
    scores_alone = plan(lambda: nn.Linear(32, CLASSES), INPUTS["x"], training=recipe)
    assert scores_alone.peak_bytes == own.peak_bytes


@pytest.mark.slow
@pytest.mark.skipif(KERNELS is None, reason="not known what this machine's kernels take")
@pytest.mark.parametrize(("loop", "library"), [("hf-trainer", "accelerate"), ("lightning", "lightning")])
def test_loops_of_libraries(loop: str, library: str) -> None:
    """A training by the library itself takes what is planned for the loop of its name."""
    pytest.importorskip("transformers")
    pytest.importorskip(library)
    from tests.benchmarks import loop_truth

    truth = loop_truth.REAL[loop]("adamw", 2)
    assert loop_truth.planned(loop=loop, gradient_accumulation=2) == pytest.approx(truth, rel=loop_truth.WITHIN)
