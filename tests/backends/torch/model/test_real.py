"""Models that need values: they run with memory, the same way in every process, and what depends on values is unknown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import plan, summarize
from pytest_modelbudget.backends.torch.model import real_copy
from pytest_modelbudget.errors import ModelBudgetError, TooLarge
from pytest_modelbudget.snapshot import render
from pytest_modelbudget.summary import Flops, Summary

WIDTH = 32


def picks(width: int = WIDTH) -> nn.Module:
    """Rows of a product, picked by their sums."""

    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.head(x)
            return y[y.sum(-1) > 0.5]

    return Picks()


class Routed(nn.Module):
    """Each token goes to two of the experts; `asks` whether an expert has any before it runs."""

    def __init__(self, asks: bool = False, width: int = WIDTH, experts: int = 4) -> None:
        super().__init__()
        self.asks, self.router = asks, nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mask = chosen == index
            if self.asks and not mask.any():
                continue
            token, slot = torch.where(mask)
            out.index_add_(0, token, expert(x[token]) * weight[token, slot, None])
        return out


class Exits(nn.Module):
    """Blocks one after the other, until one is sure."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure, self.head = sure, nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).relu()
            if self.head(x).softmax(-1).max() > self.sure:
                break
        return self.head(x)


class Shown(nn.Module):
    """A product, and what a function makes of it."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(WIDTH, 5), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(x))


def both(build: Callable[[], nn.Module], inputs: Any, **options: Any) -> list[Summary]:
    """The model counted from a builder and live."""
    return [summarize(model, inputs, name="m", **options) for model in (build, build())]


@pytest.mark.parametrize("width", [128, 255, 256, 300])
def test_a_builder_counts_like_its_model_whatever_the_width(width: int) -> None:
    """Weights large enough to be left out while building are there when values are needed: 2 * 16 * w * w FLOPs."""
    for summary in both(lambda: picks(width), f"float32[16, {width}]"):
        assert (summary.params, summary.flops.value) == (width * width + width, 2 * 16 * width * width)
        assert [spec.shape for spec in summary.outputs] == [(None, width)]
        assert summary.real_run


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        pytest.param(lambda y: y.argmax(-1).unique(), (None,), id="distinct values"),
        pytest.param(lambda y: (y > 0).nonzero(), (None, 2), id="places of a mask"),
        pytest.param(lambda y: torch.masked_select(y, y > 0), (None,), id="elements of a mask"),
        pytest.param(lambda y: y[y[:, 0] > 0][:2], (None, 5), id="no more than two"),
        pytest.param(lambda y: y[: int((y.detach().numpy() > 0).sum()) % 7], (None, 5), id="numpy"),
        pytest.param(
            lambda y: torch.cat([y[:n] for n in (y[:, 0] > 0).sum(0, keepdim=True).tolist()]), (None, 5), id="a list"
        ),
        pytest.param(lambda y: y[: 1 + int(y.argmax(-1)[0])], (None, 5), id="a number"),
        pytest.param(lambda y: y if torch.isnan(y).any() else y * 2, (16, 5), id="a check"),
    ],
)
def test_dimensions_that_depend_on_values_are_unknown(
    function: Callable[..., Any], shape: tuple[int | None, ...]
) -> None:
    """Whatever they happened to be, from a builder and live; the product before them is 2 * 16 * 32 * 5 FLOPs."""
    for summary in both(lambda: Shown(function), f"float32[16, {WIDTH}]"):
        assert summary.outputs[0].shape == shape
        assert summary.flops.value == 2 * 16 * WIDTH * 5


@pytest.mark.parametrize("asks", [False, True], ids=["each expert", "experts with tokens"])
def test_routed_experts(asks: bool) -> None:
    """Each of 16 tokens takes the router and two experts; how many take which expert is unknown."""
    for summary in both(lambda: Routed(asks), f"float32[16, {WIDTH}]"):
        assert summary.flops.value == 2 * 16 * WIDTH * 4 + 16 * 2 * 2 * WIDTH * WIDTH
        rows = {row.path: row for row in summary.layers}
        assert rows["experts.0"].outputs[0][0].shape == (None, WIDTH)
        assert rows["experts.0"].flops is None


@pytest.mark.parametrize("sure", [0.1, 0.9999], ids=["at once", "never"])
def test_an_early_exit_has_no_known_flops(sure: float) -> None:
    """Also where all weights that were tried exit at the same block."""
    for summary in both(lambda: Exits(sure), f"float32[B, {WIDTH}]"):
        assert summary.flops.value is None
        assert any("FLOPs depend on them" in note for note in summary.notes)
        assert str(summary.outputs[0]) == "float32[B, 4]"


@pytest.mark.slow
def test_the_same_snapshot_in_every_process() -> None:
    """Whatever the number of threads and the state of the random numbers."""
    code = (
        "import sys, torch; sys.path.insert(0, '.'); torch.set_num_threads(1); torch.manual_seed(1)\n"
        "from tests.backends.torch.model.test_real import Routed, render, summarize\n"
        "print(render(summarize(Routed, 'float32[16, 32]', name='m'), declared='m'), end='')"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode == 0, other.stderr
    assert other.stdout == render(summarize(Routed, "float32[16, 32]", name="m"), declared="m")


def test_weights_that_nobody_set_are_defined() -> None:
    """`torch.empty` gives other numbers in each process; what a builder leaves in it is drawn with a fixed seed."""

    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(8, 8))

    models = []
    for _ in range(2):
        with real_copy.with_memory(0, limited=True):
            models.append(Left())
        real_copy.draw_undefined_parameters(models[-1])
    assert torch.equal(models[0].weight, models[1].weight)
    assert models[0].weight.isfinite().all()


def test_weights_of_other_classes_stay_as_they_are() -> None:
    """A weight that stands for others need not know the question whether it was left undefined."""

    class Closed(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.isnan:
                raise NotImplementedError
            return super().__torch_function__(func, types, args, kwargs or {})

    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Closed))
    real_copy.draw_undefined_parameters(layer)
    assert type(layer.weight) is Closed


def test_the_users_settings_are_as_before() -> None:
    """Threads, determinism, filling of memory and random numbers."""

    def settings() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.get_rng_state().tolist(),
        )

    before = settings()
    summarize(Routed, f"float32[16, {WIDTH}]", name="m")
    assert settings() == before


@pytest.mark.parametrize("live", [False, True], ids=["builder", "live"])
def test_a_model_that_is_too_large_for_a_real_run(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the line that needs values, the limit and the key that lifts it; with the key it runs."""
    monkeypatch.setattr(real_copy, "REAL_LIMIT", 1_000)
    model: Any = picks() if live else picks
    with pytest.raises(ModelBudgetError, match=r"(?s)test_real.py:\d+.*1 GiB.*`run: real`"):
        summarize(model, f"float32[16, {WIDTH}]", name="m")
    assert summarize(model, f"float32[16, {WIDTH}]", name="m", run="real").params == WIDTH * WIDTH + WIDTH


@pytest.mark.parametrize("live", [False, True], ids=["builder", "live"])
def test_a_real_run_can_be_asked_for_and_forbidden(live: bool) -> None:
    """`run: real` runs what needs no values too, and says so; `run: abstract` is an error where values are needed."""
    plain: Any = nn.Linear(3, 4) if live else lambda: nn.Linear(3, 4)
    asked = summarize(plain, "float32[B, 3]", name="m", run="real")
    assert asked.real_run
    assert any("`run: real`" in note for note in asked.notes)
    assert (asked.params, asked.flops.value, str(asked.outputs[0])) == (16, 24, "float32[B, 4]")
    with pytest.raises(ModelBudgetError, match="values"):
        summarize(picks() if live else picks, f"float32[16, {WIDTH}]", name="m", run="abstract")


def test_a_model_without_values_is_an_error_that_names_the_weight() -> None:
    """A builder that makes its model on the meta device itself cannot be run on values."""

    def build() -> nn.Module:
        with torch.device("meta"):
            return picks()

    with pytest.raises(
        ModelBudgetError, match=r"'head.weight' is on the meta device: let the builder make it on the CPU"
    ):
        summarize(build, f"float32[16, {WIDTH}]", name="m")


def test_a_build_with_memory_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that two layers share count once."""
    monkeypatch.setattr(real_copy, "REAL_LIMIT", 4 * 100)

    def tied() -> nn.Module:
        first, second = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
        second.weight = first.weight
        return nn.Sequential(first, second)

    with real_copy.with_memory(0, limited=True), pytest.raises(TooLarge):
        tied()
    monkeypatch.setattr(real_copy, "REAL_LIMIT", 4 * 200)
    with real_copy.with_memory(0, limited=True):
        assert isinstance(tied(), nn.Sequential)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params"),
    [
        pytest.param("ssdlite320_mobilenet_v3_large", 3_440_060, id="SSDlite"),
        pytest.param("fasterrcnn_mobilenet_v3_large_320_fpn", 19_386_354, id="Faster R-CNN"),
        pytest.param("fcos_resnet50_fpn", 32_269_600, id="FCOS"),
        pytest.param("retinanet_resnet50_fpn", 34_014_999, id="RetinaNet"),
        pytest.param("maskrcnn_resnet50_fpn", 44_401_393, id="Mask R-CNN"),
    ],
)
def test_detectors(name: str, params: int) -> None:
    """Params as published, frozen batch norms without their buffers; boxes, scores and labels are as many as are found."""
    import torchvision

    def build() -> nn.Module:
        return torchvision.models.get_model(name, weights=None, weights_backbone=None)  # type: ignore[no-any-return]

    plain = build()
    wanted = sum(parameter.numel() for parameter in plain.parameters())
    for summary in both(build, {"args": [["float32[3, 160, 160]"]]}):
        assert summary.params == wanted
        assert all(spec.shape[0] is None for spec in summary.outputs)
    assert abs(wanted - params) / params < 0.002  # without weights, batch norms are trained ones


@pytest.mark.parametrize("recipe", [{"training": True}, {"inference": True}], ids=["training", "inference"])
def test_what_needs_values_has_no_plan_without(recipe: dict[str, bool]) -> None:
    """Where no pass may be real the note says that it is the values, in this project's words rather than in torch's."""
    planned = plan(picks, f"float32[4, {WIDTH}]", name="m", run="abstract", **recipe)
    [note] = planned.notes
    assert planned.peak_bytes is None
    assert note.startswith("not planned: m: the forward pass")
    assert "the model decides by values" in note
    assert "nonzero" not in note


class Conditional(nn.Module):
    """One of two ways by the sign of a sum, in torch's own operator for that."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.short = nn.Linear(4, 4)
        self.long = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4))

    def forward(self, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, self.short, self.long, (x,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "flops"), [pytest.param(2, 2 * 2 * 16, id="equal ways"), pytest.param(9, None, id="unequal ways")]
)
def test_a_condition_in_torchs_own_operator_is_one_in_python(
    counted: Callable[..., Summary], width: int, flops: int | None
) -> None:
    """Both ways are run: 4 * 4 multiply-adds a row in either, or FLOPs are unknown; nothing is uncounted."""
    assert counted(lambda: Conditional(width), "float32[2, 4]").flops == Flops(flops)


@pytest.mark.slow
def test_a_loop_in_torchs_own_operator_is_one_in_python(counted: Callable[..., Summary]) -> None:
    """Its body is called three times, each with 4 * 4 multiply-adds a row."""
    from torch._higher_order_ops.while_loop import while_loop

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, self.layer(y)), (torch.tensor(0), x))[1]

    assert counted(Loop, "float32[2, 4]").flops == Flops(3 * 2 * 2 * 4 * 4)
