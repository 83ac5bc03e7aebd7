"""Torch models without inputs: what is known of them without a run, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pytest_modelbudget import ModelBudgetError, ModelEntry, Summary, compare, plan, snapshot, summarize
from pytest_modelbudget.backends import torch as backend
from pytest_modelbudget.engine.run import run
from pytest_modelbudget.explain import reading
from pytest_modelbudget.reports import REPORTS, render
from pytest_modelbudget.results import State
from pytest_modelbudget.trackers.mlflow import artifacts, names

Count = Callable[..., Summary]


class Tied(nn.Module):
    """A table whose weight the head shares, frozen parts, buffers, a list and a parametrized layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("positions", torch.arange(6))
        self.table = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)])
        self.blocks[0].requires_grad_(False)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4, bias=False))
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.normed(self.blocks[0](self.table(ids))))


PARAMS = 3 + 10 * 4 + (4 * 4 + 4) + (4 + 4) + (4 + 4 * 4)
BUFFERS = 6 + (4 + 4 + 1)


@pytest.fixture(params=["from a builder", "live"])
def tied(request: pytest.FixtureRequest, count: Count, count_live: Count) -> Summary:
    """The model without inputs."""
    return count(Tied, None) if request.param == "from a builder" else count_live(Tied(), None)


def test_totals_are_known(tied: Summary) -> None:
    """Params, which of them are trained, buffers and bytes, by hand and as torch counts them."""
    model = Tied()
    assert (tied.params, tied.buffers) == (PARAMS, BUFFERS)
    assert tied.params == sum(parameter.numel() for parameter in model.parameters())
    assert tied.non_trainable_params == 4 * 4 + 4
    assert tied.weight_bytes == 4 * PARAMS + 8 * 6 + 4 * (4 + 4) + 8


def test_rows_are_those_of_a_run(tied: Summary, count: Count) -> None:
    """The same paths, types, containers and weights, ties among them, as with inputs."""
    ran = count(Tied, "int64[B]", B=2)
    fields = [(row.path, row.type, row.container, row.weights) for row in tied.layers]
    assert fields == [(row.path, row.type, row.container, row.weights) for row in ran.layers]
    assert [(row.path, row.params) for row in tied.layers] == [
        ("(root)", 3), ("table", 40), ("blocks.0", 20), ("blocks.1", 8), ("normed", 20), ("head", 0),
    ]  # fmt: skip


def test_what_a_run_would_tell_is_unknown(tied: Summary) -> None:
    """None and nothing, never 0; a note says what to write."""
    assert {(row.outputs, row.connected_to, row.calls, row.flops, row.activation_bytes) for row in tied.layers} == {
        ((), (), None, None, None)
    }
    assert (tied.flops.value, tied.activation_bytes, tied.inputs, tied.outputs, tied.sizes) == (None, None, (), (), ())
    [note] = tied.notes
    assert 'inputs: "float32[B, 3, 224, 224]"' in note


def test_nothing_is_run(count_live: Count) -> None:
    """A forward that must not be called is not, and the model stays as it was."""

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("called")

    model = Careful()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert count_live(model, None).params == 6
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize(
    ("wrap", "params"),
    [
        pytest.param(nn.DataParallel, 20, id="data parallel"),
        pytest.param(torch.compile, 20, id="compiled"),
        pytest.param(
            lambda model: nn.Sequential(model, nn.ModuleDict({"a": nn.Linear(1, 1)})), 22, id="in a container"
        ),
        pytest.param(lambda model: model.to(torch.bfloat16), 20, id="half precision"),
        pytest.param(lambda model: model.to("meta"), 20, id="without memory"),
    ],
)
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module], params: int, count_live: Count) -> None:
    """Wrappers are looked through, as with inputs."""
    assert count_live(wrap(nn.Linear(4, 4)), None).params == params


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: nn.Sequential(nn.ReLU(), nn.LazyLinear(3)), id="a layer"),
        pytest.param(lambda: nn.Sequential(nn.ReLU(), nn.LazyBatchNorm1d()), id="buffers"),
    ],
)
def test_a_lazy_layer_needs_inputs(build: Callable[[], nn.Module], count: Count, count_live: Count) -> None:
    """Its params are not known before its first input: an error that names it and says what to write."""
    for attempt in (lambda: count(build, None), lambda: count_live(build(), None)):
        with pytest.raises(ModelBudgetError, match=r"the lazy layer '1' \(Lazy.*write e\.g\. inputs: "):
            attempt()


def test_known_numbers_are_limited_and_unknown_ones_fail(tmp_path: Path) -> None:
    """Limits on what is known hold; on what is not they fail with the reason."""
    known = {
        "params": PARAMS, "trainable_params": PARAMS - 20, "buffers": BUFFERS, "weight_bytes": "1 kB", "layers": 5,
        "largest_layer_share": "50%",
    }  # fmt: skip
    held = run(
        ModelEntry("tied", Tied, budgets={**known, "layers": {"table": {"params": 40}}}), tmp_path, snapshots=False
    )
    assert (held.state, held.violations) == (State.OK, ())
    broken = run(ModelEntry("tied", Tied, budgets={"params": PARAMS - 1}), tmp_path, snapshots=False)
    assert [violation.actual for violation in broken.violations] == [PARAMS]
    limits = {"flops": "1 GFLOPs", "activation_bytes": "1 GB", "training_peak_bytes": "1 GB"}
    blind = run(ModelEntry("tied", Tied, training=True, budgets=limits), tmp_path, snapshots=False)
    reasons = {violation.budget.metric: violation.reason for violation in blind.violations}
    assert blind.state is State.OVER_BUDGET
    assert set(reasons) == set(limits)
    assert all("inputs" in reason for reason in reasons.values())


def test_a_plan_has_no_peak(count: Count) -> None:
    """The reason is in its notes, for each kind of run."""
    for kind in ("training", "inference"):
        planned = plan(Tied, **{kind: {}}, devices="24 GB", advice=True)  # type: ignore[arg-type]
        assert (planned.peak_bytes, planned.parts) == (None, ())
        assert "inputs" in planned.notes[0]


def test_it_is_stored_and_shown(tmp_path: Path) -> None:
    """The snapshot reads back as it was, and every report and the tracker have its numbers and `?`."""
    result = run(ModelEntry("tied", Tied, samples=1000), tmp_path)
    summary = result.summary
    assert summary is not None
    text = snapshot.render(summary, declared="x")
    again = snapshot.read(text)
    assert again.layers == summary.layers
    assert snapshot.render(again, declared="x") == text
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
    assert all(render(kind, [result]) for kind in REPORTS)
    assert "FLOPs, forward: ?" in str(summary)
    assert json.loads(artifacts.layers_table(summary))["data"][-1] == ["head", 0, "Linear", "?", 0, "?"]
    assert "compute/forward_gflops" in names.unknown_names(names.metrics(summary))
    assert not any("never called" in sentence for sentence in reading(summary))


def test_inputs_that_come_or_go_are_one_change(count: Count) -> None:
    """Beside the totals: all rows together, whatever their shapes are."""
    bare, ran = count(Tied, None), count(Tied, "int64[B]", B=1)
    rows = [change for change in compare(bare, ran) if not change.of_the_model]
    assert [(change.kind, change.before, change.after) for change in rows] == [
        ("calls", "6 rows shapes and calls not known", "known")
    ]
    back = [change for change in compare(ran, bare) if not change.of_the_model]
    assert [(change.kind, change.after) for change in back] == [("calls", "shapes and calls not known")]
    assert compare(bare, count(Tied, None)) == ()


def test_published_models_have_their_params() -> None:
    """As published, without a word on inputs: 25,557,032 and 44,549,160."""
    models = pytest.importorskip("torchvision.models")
    assert summarize(models.resnet50).params == 25_557_032
    assert summarize(models.resnet101).params == 44_549_160


def test_scripted_and_packed_models(count_live: Count) -> None:
    """Their weights are read without a run too."""
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert count_live(scripted, None).params == 2 * 3 + 3


def test_the_backend_needs_no_torch_state() -> None:
    """Also where a default device and dtype are set."""
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    assert backend.summarize(model, name="m", inputs=None, sizes={}, built_here=False).weight_bytes == 4 * (6 + 2)
