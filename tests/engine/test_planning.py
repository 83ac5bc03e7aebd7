"""What is planned after a model was counted: recipes, devices, laws of growth; on a fake framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import ModelEntry, backends, budget
from pytest_modelbudget.engine.planning import plans_only
from pytest_modelbudget.engine.run import run, summarize_entry
from pytest_modelbudget.planner import Inference, Recipe, Training
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Fit, Lever, Plan
from tests import fakes
from tests.fakes import Model


@pytest.fixture(autouse=True)
def only_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No framework but the fake one is known."""
    monkeypatch.setattr(backends, "BACKENDS", {"tests.fakes": "tests.fakes"})


@dataclass
class Recorder:
    """A backend's recorder whose peak is a formula of the sizes; notes what it was asked for."""

    peak: Callable[[Mapping[str, int]], int | None]
    asked: list[tuple[dict[str, int], Recipe]] = field(default_factory=list)

    def __call__(
        self, model: object, *, name: str, inputs: object, sizes: Mapping[str, int], recipes: tuple[Recipe, ...],
        built_here: bool, devices: tuple[str, ...] = (),
    ) -> tuple[Plan, ...]:  # fmt: skip
        assert isinstance(model, Model)
        [recipe] = recipes
        self.asked.append((dict(sizes), recipe))
        kind = "training" if isinstance(recipe, Training) else "inference"
        return (Plan(kind, "", self.peak(sizes), levers=(Lever("checkpointing: blocks", 600),)),)  # type: ignore[arg-type]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Mapping[str, int]], int | None]], Recorder]:
    """Gives the fake framework a recorder."""

    def install(peak: Callable[[Mapping[str, int]], int | None]) -> Recorder:
        recorder = Recorder(peak)
        monkeypatch.setattr(fakes, "plan", recorder, raising=False)
        return recorder

    return install


def checked(path: Path, **options: Any) -> Result:
    """A model of 32 x 64 params with one input `float32[B, T, 32]`."""
    options = {"inputs": "float32[B, T, 32]", "dims": {"T": 8}, **options}
    return run(ModelEntry("net", lambda: Model(dense=(32, 64)), **options), path, snapshots=False)


def test_each_recipe_is_planned_at_its_own_sizes(tmp_path: Path, record: Any) -> None:
    """Training and inference, with the batch and the dims of the recipe in place of the model's."""
    recorder = record(lambda sizes: 100 * sizes["B"] * sizes["T"])
    result = checked(tmp_path, batch=2, training={"batch": 4, "optimizer": "sgd"}, inference={"dims": {"T": 16}})
    assert [sizes for sizes, _ in recorder.asked] == [{"B": 4, "T": 8}, {"B": 2, "T": 16}]
    assert result.summary is not None
    assert [(plan.kind, plan.recipe, plan.peak_bytes) for plan in result.summary.plans] == [
        ("training", "batch 4, sgd, fp32", 3_200),
        ("inference", "T 16, fp32", 3_200),
    ]
    assert dict(result.summary.sizes) == {"B": 2, "T": 8}


def test_nothing_is_planned_when_nothing_asks(tmp_path: Path, record: Any) -> None:
    """A run without recipes and laws costs what it did."""
    recorder = record(lambda _: 1)
    result = checked(tmp_path, budgets={"params": "3k"})
    assert (recorder.asked, result.state) == ([], State.OK)


def raising(error: BaseException) -> Callable[[Mapping[str, int]], int]:
    def peak(_: Mapping[str, int]) -> int:
        raise error

    return peak


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(KeyError("targets"), "not planned: KeyError: 'targets' (", id="the model's own code"),
        pytest.param(SystemExit(3), "not planned: SystemExit: 3", id="that would leave"),
        pytest.param(RecursionError("deep\ndeeper"), "not planned: RecursionError: deep (", id="too deep, on one line"),
    ],
)
def test_a_failure_never_hides_the_summary(tmp_path: Path, record: Any, error: BaseException, words: str) -> None:
    """The plan is there without a peak, and a budget on it fails with the reason."""
    record(raising(error))
    result = checked(tmp_path, training={}, budgets={"training_peak_bytes": "1 MB", "fits": "24 GB", "params": 2048})
    assert result.summary is not None
    assert (result.summary.params, result.state) == (2_048, State.OVER_BUDGET)
    [plan] = result.summary.plans
    assert plan.peak_bytes is None
    assert plan.notes[0].startswith(words)
    assert [violation.budget.metric for violation in result.failures] == ["training_peak_bytes", "fits"]
    assert all(words in str(violation) for violation in result.failures)


def test_the_user_can_stop_planning(tmp_path: Path, record: Any) -> None:
    """Ctrl-C is no reason."""
    record(raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        checked(tmp_path, training={})


def test_a_batch_that_the_inputs_have_already_is_planned(tmp_path: Path, record: Any) -> None:
    """Inputs without a dimension B are for the batch that is their first size."""
    recorder = record(lambda _: 1)
    result = checked(tmp_path, inputs="float32[4, 32]", dims={}, training={"batch": 4})
    assert result.summary is not None
    assert (recorder.asked[0][0], result.summary.plans[0].peak_bytes) == ({}, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(
            {"inputs": "float32[4, 32]", "dims": {}, "training": {"batch": 8}},
            "training.batch: the inputs have no dimension B (they have none)", id="batch without B",
        ),
        pytest.param(
            {"training": {"dims": {"S": 8}}}, "training.dims.S: the inputs have no dimension S (they have B, T)",
            id="an unknown dimension",
        ),
    ],
)  # fmt: skip
def test_a_size_that_goes_nowhere_is_no_plan(tmp_path: Path, record: Any, options: dict[str, Any], words: str) -> None:
    """Else the number would be that of another batch than the recipe says."""
    record(lambda _: 1)
    result = checked(tmp_path, **options)
    assert result.summary is not None
    assert words in result.summary.plans[0].notes[0]
    assert result.state is State.OK


IDLE_NO_SYNC = {
    "no ranks": ({"gradient_accumulation": 4}, "no ranks exchange gradients here"),
    "no copies": ({"gradient_accumulation": 4, "sharding": {"tp": 2}}, "no ranks exchange gradients here"),
    "one pass": ({"sharding": {"ddp": 2}}, "the only pass before a step exchanges"),
    "both": ({"sharding": {"ddp": 2}, "gradient_accumulation": 2}, ""),
}


@pytest.mark.parametrize(("recipe", "words"), IDLE_NO_SYNC.values(), ids=IDLE_NO_SYNC)
def test_a_no_sync_that_changes_nothing_is_refused(tmp_path: Path, record: Any, recipe: Any, words: str) -> None:
    """Whoever writes it believes that it saves something."""
    record(lambda _: 1)
    summary = checked(tmp_path, training={"no_sync": True, **recipe}).summary
    assert summary is not None
    [plan] = summary.plans
    assert plan.notes[0].startswith(f"not planned: training.no_sync: {words}") if words else plan.peak_bytes == 1


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param({"training_peak_bytes": "1 kB"}, [], id="within"),
        pytest.param({"training_peak_bytes": "900 B"}, ["training_peak_bytes: 1,000 bytes > 900 bytes (+100, +11.1%)"], id="over"),
        pytest.param({"inference_peak_bytes": "1 MB"}, [
            "inference_peak_bytes: unknown: no inference is planned: write inference: {batch: 32, precision: bf16} "
            "for this model",
        ], id="no recipe"),
        pytest.param({"fits": "1 GB"}, [], id="fits"),
        pytest.param({"fits": {"max": "1 GB"}}, [], id="fits, spelt out"),
        pytest.param({"fits": "0.8 kB"}, [
            "fits: training needs 1000 B of 800 B on 0.8 kB: short by 200 B; levers: checkpointing: blocks would save 400 B; "
            "nothing that was tried fits 0.8 kB (8 plans)",
        ], id="does not fit"),
        pytest.param({"fits": ["1 GB", "0.7 kB", "0.8 kB"]}, [
            "fits: training needs 1000 B of 700 B on 0.7 kB: short by 300 B; levers: checkpointing: blocks would save 400 B; "
            "nothing that was tried fits 0.7 kB (8 plans)",
            "fits: training needs 1000 B of 800 B on 0.8 kB: short by 200 B; levers: checkpointing: blocks would save 400 B; "
            "nothing that was tried fits 0.8 kB (8 plans)",
        ], id="each device"),
    ],
)  # fmt: skip
def test_budgets(tmp_path: Path, record: Any, limits: dict[str, Any], expected: list[str], no_context: None) -> None:
    """Limits on peaks and devices."""
    record(lambda _: 1_000)
    result = checked(tmp_path, training={}, budgets=limits)
    assert [str(violation) for violation in result.failures] == expected


@pytest.fixture
def no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices without a context, so that a need is what the plan says."""
    from pytest_modelbudget.planner import fitting

    def bare(plan: Plan, device: str) -> Fit:
        return Fit(device, fitting.device_capacity(device), plan.peak_bytes)

    monkeypatch.setattr(fitting, "_fit_of", bare)


def attention(sizes: Mapping[str, int]) -> int:
    """Linear layers and the matrix of attention."""
    return sizes["B"] * (1_000 * sizes["T"] + 10 * sizes["T"] ** 2)


@pytest.mark.parametrize(
    ("peak", "laws", "expected"),
    [
        pytest.param(lambda sizes: 70 * sizes["T"], {"T": {"training_peak_bytes": "linear"}}, [], id="linear"),
        pytest.param(lambda sizes: 70 * sizes["T"], {"T": {"training_peak_bytes": "constant"}}, [
            "training_peak_bytes in T: linear, and constant is allowed: 560 B at 8, 1.094 KiB at 16, 2.188 KiB at 32",
        ], id="not constant"),
        pytest.param(attention, {"T": {"training_peak_bytes": "linear"}}, [
            "training_peak_bytes in T: quadratic, and linear is allowed: 8.438 KiB at 8, 18.12 KiB at 16, 41.25 KiB at "
            "32, 102.5 KiB at 64; at T=8 7.4% of what grows does so with T^2",
        ], id="attention"),
        pytest.param(attention, {"T": {"training_peak_bytes": {"max_exponent": 1.1}}}, [], id="exponent allowed"),
        pytest.param(attention, {"T": {"training_peak_bytes": {"max_exponent": 1.05}}}, [
            "training_peak_bytes in T: exponent 1.0741 (quadratic), and exponent 1.05 is allowed: 8.438 KiB at 8, 18.12 "
            "KiB at 16, 41.25 KiB at 32, 102.5 KiB at 64; at T=8 7.4% of what grows does so with T^2",
        ], id="exponent"),
        pytest.param(attention, {"B": {"training_peak_bytes": "linear"}}, [], id="linear in the batch"),
        pytest.param(attention, {"B": {"flops": "constant"}}, [
            "flops in B: linear, and constant is allowed: 8.192 kFLOPs at 2, 16.38 kFLOPs at 4, 32.77 kFLOPs at 8",
        ], id="flops, by counting"),
        pytest.param(attention, {"S": {"flops": "linear"}}, [
            "flops in S: unknown (the inputs have no dimension S; they have B, T)",
        ], id="no such dimension"),
        pytest.param(attention, {"T": {"activation_bytes": "linear"}}, [
            "activation_bytes in T: unknown (activation_bytes is not known at T=8)",
        ], id="not known at any size"),
        pytest.param(attention, {"T": {"inference_peak_bytes": "linear"}}, [
            "inference_peak_bytes in T: unknown (no inference is planned: write inference: {} for this model)",
        ], id="no recipe"),
        pytest.param(attention, {"T": None}, [], id="lifted"),
    ],
)  # fmt: skip
def test_growth(tmp_path: Path, record: Any, peak: Any, laws: dict[str, Any], expected: list[str]) -> None:
    """A law holds or is told with the numbers that show it; what cannot be told fails."""
    record(peak)
    result = checked(tmp_path, training={}, budgets={"growth_in": laws})
    assert [str(violation) for violation in result.failures] == expected


def test_growth_where_larger_sizes_do_not_go(tmp_path: Path, record: Any) -> None:
    """A table of 8 positions: the law is told from smaller sizes."""

    def peak(sizes: Mapping[str, int]) -> int:
        if sizes["T"] > 32:
            raise IndexError("no such position")
        return sizes["T"] ** 2

    record(peak)
    result = checked(
        tmp_path, dims={"T": 32}, training={}, budgets={"growth_in": {"T": {"training_peak_bytes": "linear"}}}
    )
    assert result.summary is not None
    [growth] = result.summary.growth
    assert (growth.law, growth.size) == ("quadratic", 32)
    assert growth.points == ((4, 16), (8, 64), (16, 256), (32, 1_024))


def test_a_kink_is_no_square(tmp_path: Path, record: Any) -> None:
    """Below 20 tokens the weights decide, above the activations: on three sizes that looks like a parabola."""
    recorder = record(lambda sizes: max(2_000, 100 * sizes["T"]))
    result = checked(tmp_path, training={}, budgets={"growth_in": {"T": {"training_peak_bytes": "linear"}}})
    assert result.state is State.OK
    assert len(recorder.asked) > 4


def test_without_a_recorder_it_is_a_sum(tmp_path: Path) -> None:
    """The fake framework knows no activations, so the peak is not known, and the rest is."""
    result = checked(tmp_path, training={"batch": 4}, inference=True)
    assert result.summary is not None
    training, inference = result.summary.plans
    assert training.peak_bytes is None
    assert training.by_role() == {"optimizer": 16_384, "param": 8_192, "gradient": 8_192, "input": 4_096}
    assert training.notes[0] == "activations are not known"
    assert inference.by_role() == {"param": 8_192, "input": 1_024}
    assert inference.notes[0] == "what a forward pass has alive at once is not known for fakenet models"
    assert (Training(batch=4), Inference()) == ModelEntry("n", "n:n", training={"batch": 4}, inference=True).recipes


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often models are counted."""
    counted: list[int] = []
    summarize = fakes.summarize

    def noted(*args: Any, **options: Any) -> Any:
        counted.append(1)
        return summarize(*args, **options)

    monkeypatch.setattr(fakes, "summarize", noted)
    return counted


def test_a_law_is_measured_only_when_it_is_asked_for(tmp_path: Path, counting: list[int]) -> None:
    """One count without, and two more for a law, whose first size is the declared one."""
    checked(tmp_path, batch=4)
    assert len(counting) == 1
    counting.clear()
    result = checked(tmp_path, batch=4, budgets={"growth_in": {"B": {"flops": "linear"}}})
    assert (result.state, len(counting)) == (State.OK, 3)


def test_no_run_is_recorded_twice(tmp_path: Path, record: Any) -> None:
    """Neither for advice, for the sizes that fit several devices, nor for laws of several metrics; nor one that fails."""

    def peak(sizes: Mapping[str, int]) -> int:
        if sizes["T"] > 32:
            raise IndexError("no such position")
        return 1_000_000 * sizes["B"] * sizes["T"]

    recorder = record(peak)
    laws = {dim: {"training_peak_bytes": "linear", "bytes_moved": "linear"} for dim in ("B", "T")}
    limits = tuple(budget.parse({"fits": ["600 MB", "700 MB"], "growth_in": laws}, lambda _: None))
    entry = ModelEntry(
        "net",
        lambda: Model(dense=(32, 64)),
        inputs="float32[B, T, 32]",
        dims={"T": 8},
        training={"batch": 4},
        budgets=limits,
    )
    [plan] = summarize_entry(entry, plans_only).plans
    assert plan.largest
    runs = [(repr(replace(recipe, batch=None, dims={})), *sizes.items()) for sizes, recipe in recorder.asked]
    assert [run for run, times in Counter(runs).items() if times > 1] == []
