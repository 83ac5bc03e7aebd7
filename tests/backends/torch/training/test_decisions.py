"""Models that decide by values are planned with the decisions of one real pass, where it may be made."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch.model import real_copy
from pytest_modelbudget.backends.torch.training import decisions
from pytest_modelbudget.summary import Plan
from tests.real_steps import KERNELS, allocated, measured, sgd


class Layer(nn.Module):
    """Halves what is not finite, as layers of DETR do, and works on the rows of positive sums alone."""

    def __init__(self, picks: bool) -> None:
        super().__init__()
        self.lin, self.picks = nn.Linear(64, 64), picks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.lin(x))
        if not torch.isfinite(x).all():
            x = x.clamp(-1, 1)
        return x[x.sum(1) >= 0] if self.picks else x


def layers(picks: bool = False) -> nn.Module:
    """Two of them; whatever the weights, all sums are positive and every number is finite."""
    return nn.Sequential(Layer(picks), Layer(picks), nn.Linear(64, 8))


def square(out: torch.Tensor) -> torch.Tensor:
    """The loss."""
    return (out * out).sum()


def planned(model: Any = layers, **options: Any) -> Plan:
    """The plan of a step on this machine's kernels."""
    recipe = {
        "optimizer": "sgd",
        "kernels": KERNELS or "cpu",
        "loop": "torch",
        "loss": square,
        **options.pop("training", {}),
    }
    return plan(model, "float32[256, 64]", training=recipe, **options)


@pytest.mark.skipif(KERNELS is None, reason="not known what this machine's kernels take")
@pytest.mark.parametrize(
    "picks", [pytest.param(False, id="a condition"), pytest.param(True, id="rows that are picked")]
)
def test_decisions_are_those_of_a_real_pass(picks: bool) -> None:
    """The peak is that of a real step, of a builder's model and of a live one, and a note says how it was made."""
    truth = allocated(layers(picks), torch.rand(256, 64), sgd, loss=square)
    for model in (lambda: layers(picks), layers(picks)):
        made = planned(model)
        assert made.peak_bytes == pytest.approx(truth, rel=2e-4)
        assert "decided" in made.notes[-1]


def test_recomputed_blocks_decide_again() -> None:
    """What is recomputed in the backward pass gets the answers of the forward pass."""
    assert planned(training={"checkpointing": "blocks"}).peak_bytes


class AsksWhere(nn.Module):
    """Decides by values, another number of times on a CPU, as torchvision's `batched_nms` does."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.lin, self.asks = nn.Linear(64, 64), asks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.lin(x))
        if not self.asks or x.device.type == "cpu":
            return x[x.sum(1) >= 0] if torch.isfinite(x).all() else x
        return x[torch.where(x >= 0)[0]]


def test_a_plan_goes_the_way_of_the_pass_it_has_the_decisions_of() -> None:
    """Models that ask for their device go the way of the CPU, where the real pass was, on a GPU's kernels too."""
    asking, plain = (planned(lambda asks=asks: AsksWhere(asks), training={"kernels": "cuda"}) for asks in (True, False))
    assert asking.peak_bytes is not None
    assert asking.peak_bytes == plain.peak_bytes


@pytest.mark.slow
@pytest.mark.skipif(KERNELS is None, reason="not known what this machine's kernels take")
def test_a_detector_trains_on_its_targets() -> None:
    """A Faster R-CNN of torchvision; how many boxes it proposes depends on its random weights, hence the tolerance."""
    detection = pytest.importorskip("torchvision").models.detection

    def build() -> nn.Module:
        model: nn.Module = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=5
        )
        return model

    boxes = torch.tensor([[10.0, 10.0, 60.0, 70.0], [30.0, 20.0, 90.0, 100.0]])
    images, targets = [torch.rand(3, 128, 128)], [{"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64)}]

    def loss(out: Any) -> torch.Tensor:
        return sum(out.values())  # type: ignore[no-any-return]

    model, alive = build().train(), dict[str, Any]()

    def step() -> None:
        optimizer = alive.setdefault("optimizer", sgd(list(model.parameters())))
        model.zero_grad()
        alive["out"] = model(images, targets)
        alive["loss"] = loss(alive["out"])
        alive["loss"].backward()
        optimizer.step()

    real = measured(step, 2) + sum(
        tensor.nbytes
        for tensor in (
            *model.parameters(),
            *model.buffers(),
            *images,
            *(t for target in targets for t in target.values()),
        )
    )
    recipe = {"optimizer": "sgd", "kernels": KERNELS or "cpu", "loss": loss, "outputs": "kept"}
    assert plan(build, lambda: (images, targets), training=recipe).peak_bytes == pytest.approx(real, rel=5e-3)


STEPS = {"steps": lambda model, x: square(model(x)).backward(), "loss": "auto", "loop": None}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({"run": "abstract"}, "the model decides by values", id="forbidden"),
        pytest.param({"training": {"sharding": {"ddp": 2}}}, "the model decides by values", id="one rank of many"),
        pytest.param({"training": STEPS}, "the model decides by values", id="a step of the user's own"),
    ],
)
def test_where_no_real_pass_is_made(options: dict[str, Any], reason: str) -> None:
    """The peak is not known, and the reason says why."""
    made = planned(**options)
    assert made.peak_bytes is None
    assert reason in made.notes[0]


def test_a_pass_that_takes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and tensors have a limit, which `run: real` lifts."""
    monkeypatch.setattr(decisions, "REAL_LIMIT", 1_000)
    assert "one of its inputs takes more than 1 GiB" in planned().notes[0]
    assert planned(run="real").peak_bytes
    monkeypatch.setattr(real_copy, "REAL_LIMIT", 1_000)
    assert "its weights take more than 1 GiB" in planned().notes[0]


class Spreads(nn.Module):
    """Decides by a value, then makes what no machine has room for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, 2**36)) if torch.isfinite(x.sin()).all() else x


@pytest.mark.parametrize(("build", "batch", "what"), [(Spreads, 256, "tensors"), (layers, 2**40, "inputs")])
def test_what_is_too_large_takes_no_memory(build: Any, batch: int, what: str) -> None:
    """It is refused before it is made: a process that looks for the largest batch would be killed."""
    made = plan(build, "float32[B, 64]", inference={"batch": batch})
    assert f"one of its {what} takes more than 1 GiB" in made.notes[0]


class ImportsFirst(nn.Module):
    """Holds its first result for good, as frames do in which torch imports something."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.head, self.name = nn.Linear(64, 4_000), name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.head(x)
        if self.name not in sys.modules:
            sys.modules[self.name] = ModuleType(self.name)
            cycle: list[Any] = [out.sin()]
            cycle.append(cycle)
        return out


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_the_first_plan_is_as_the_second(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What imports hold at the first operators of a process is in no plan."""
    name = f"first_{kind}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    first, second = (plan(lambda: ImportsFirst(name), "float32[64, 64]", **{kind: {}}) for _ in range(2))
    monkeypatch.delitem(sys.modules, name)
    assert first.peak_bytes == second.peak_bytes
