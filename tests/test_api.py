"""`summarize`, `plan` and `compare` as people call them, on torch models."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import ModelBudgetError, ModelEntry, compare, log_summary, plan, summarize
from pytest_modelbudget.config import load
from pytest_modelbudget.engine.run import run
from pytest_modelbudget.results import State


class Mixer(nn.Module):
    """One product over features and one over positions."""

    def __init__(self, width: int = 4, length: int = 6) -> None:
        super().__init__()
        self.features = nn.Linear(width, 8)
        self.positions = nn.Linear(length, length)

    def forward(self, x: torch.Tensor) -> Any:
        return self.positions(self.features(x).transpose(1, 2))


def flops(batch: int, length: int = 6) -> int:
    """2 for each multiply-add of both products."""
    return 2 * batch * (length * 4 * 8 + 8 * length * length)


@pytest.mark.parametrize(
    ("inputs", "sizes", "expected"),
    [
        pytest.param("float32[B, 6, 4]", {}, flops(1), id="B is 1"),
        pytest.param("float32[B, 6, 4]", {"batch": 5}, flops(5), id="batch"),
        pytest.param("float32[B, T, 4]", {"dims": {"T": 6}}, flops(1), id="dims"),
        pytest.param("float32[B, T, W]", {"batch": 3, "dims": {"T": 6, "W": 4}}, flops(3), id="several dims"),
        pytest.param("float32[N, 6, 4]", {"dims": {"N": 7}}, flops(7), id="another name for the batch"),
        pytest.param(torch.zeros(3, 6, 4), {}, flops(3), id="a tensor"),
    ],
)
def test_dimensions_are_sized_as_in_a_manifest(inputs: Any, sizes: dict[str, Any], expected: int) -> None:
    """From a builder and live."""
    assert summarize(Mixer, inputs, **sizes).flops.value == expected
    assert summarize(Mixer(), inputs, **sizes).flops.value == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(
            lambda: summarize(Mixer, "float32[B, T, 4]"), "'T' has no size: give one with dims: {T: 128}", id="T"
        ),
        pytest.param(lambda: summarize(Mixer, "float32[N, 6, 4]", batch=3), "(batch sizes only B)", id="batch is B"),
        pytest.param(
            lambda: summarize(Mixer, "float32[2, 6, 4]", batch=3),
            "no dimension B (they have none)",
            id="batch of nothing",
        ),
        pytest.param(
            lambda: summarize(Mixer, "float32[B, 6, 4]", dims={"Q": 3}),
            "no dimension Q (they have B)",
            id="size of nothing",
        ),
        pytest.param(
            lambda: summarize(Mixer, lambda: torch.randn(2, 6, 4), batch=3), "no dimension B", id="batch of an example"
        ),
        pytest.param(lambda: summarize(Mixer, "float32[B, 6, 4]", batch=0), "batch: 0 is not a size", id="no batch"),
        pytest.param(
            lambda: summarize(Mixer, "float32[B, T, 4]", dims={"T": 1.5}),  # type: ignore[dict-item]
            "T: 1.5 is not a size: write a whole number from 1 up",
            id="a fraction",
        ),
        pytest.param(lambda: summarize(Mixer, "float32[B, 6, 4]", run="fast"), "write real or abstract", id="run"),  # type: ignore[arg-type]
        pytest.param(lambda: plan(Mixer, "float32[B, 6, 4]", run="fast"), "write real or abstract", id="run of a plan"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_say_what_to_write(call: Any, words: str) -> None:
    """A dimension without a size is an error, never 1 without a word."""
    with pytest.raises(ModelBudgetError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        pytest.param({"inference": {"batch": 64, "dims": {"T": 6}}}, 64, id="of the recipe"),
        pytest.param({"inference": {}, "batch": 128, "dims": {"T": 6}}, 128, id="of the call"),
        pytest.param({"inference": {"batch": 64}, "batch": 128, "dims": {"T": 6}}, 64, id="the recipe first"),
        pytest.param({"inference": {"dims": {"T": 6}}, "dims": {"T": 7}}, 1, id="its dims too"),
    ],
)
def test_a_plan_sizes_dimensions(sizes: dict[str, Any], batch: int) -> None:
    """Bytes of the inputs at batch * 6 * 4 numbers of 4 bytes."""
    assert plan(Mixer, "float32[B, T, 4]", **sizes).by_role()["input"] == batch * 6 * 4 * 4


def test_a_list_of_what_changed_is_short() -> None:
    """Each change is a short line where it is listed."""
    before, after = (summarize(lambda w=w: Mixer(w), f"float32[B, 6, {w}]", name="m") for w in (4, 5))
    assert all(len(repr(change)) < 200 for change in compare(before, after))
    assert len(repr(before)) < 120
    assert "\n" not in repr(before)


@dataclass
class Config:
    """What `Configured` is made of."""

    width: int
    heads: tuple[int, ...] = ()
    head: nn.Module | None = None


class Configured(nn.Module):
    """A model that takes its config alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.body = nn.Linear(config.width, config.width)
        self.heads = nn.ModuleList(nn.Linear(config.width, size) for size in config.heads)
        self.head = config.head

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x)


HERE = "tests.test_api"


def entries(tmp_path: Path, text: str) -> list[ModelEntry]:
    """The models of a manifest."""
    (tmp_path / "modelbudget.yaml").write_text(f"models:\n  net:\n{text}")
    loaded = load(tmp_path / "modelbudget.yaml", file="modelbudget.yaml")
    assert loaded.mistakes == ()
    return list(loaded.entries)


@pytest.mark.parametrize(
    ("text", "params"),
    [
        pytest.param(
            f'    build: {HERE}:Configured\n    args: [{{call: "{HERE}:Config", kwargs: {{width: 8, heads: [2, 3]}}}}]\n',
            8 * 9 + 9 * 2 + 9 * 3,
            id="a dataclass",
        ),
        pytest.param(
            f'    build: {HERE}:Configured\n    kwargs: {{config: {{call: "types:SimpleNamespace", kwargs: {{width: 8, '
            'heads: [], head: {call: "torch.nn:Linear", args: [8, 100], kwargs: {dtype: {ref: "torch:float16"}}}}}}\n',
            8 * 9 + 9 * 100,
            id="with a part of the model",
        ),
        pytest.param(
            '    build: torch.nn:Sequential\n    args: [{call: "torch.nn:Linear", args: [8, 2]}, {call: "torch.nn:ReLU"}]\n',
            9 * 2,
            id="a model without a line of Python",
        ),
    ],
)
def test_classes_that_take_a_config(tmp_path: Path, text: str, params: int) -> None:
    """A manifest writes the call that makes it."""
    [entry] = entries(tmp_path, text)
    result = run(entry, tmp_path, snapshots=False)
    assert result.summary is not None, result.error
    assert (result.state, result.summary.params) == (State.OK, params)


def test_parts_of_a_model_take_no_memory(tmp_path: Path) -> None:
    """What a call in the arguments makes is made without memory too: 4 TB of weights."""
    [entry] = entries(
        tmp_path,
        '    build: torch.nn:Sequential\n    args: [{call: "torch.nn:Linear", args: [1_000_000, 1_000_000]}]\n',
    )
    result = run(entry, tmp_path, snapshots=False)
    assert result.summary is not None, result.error
    assert result.summary.params == 10**12 + 10**6


def test_no_garbage_is_collected_while_a_built_model_is_there() -> None:
    """From the call of the builder until its model is gone, no collection looks through the many objects it is."""
    built: list[weakref.ref[nn.Module]] = []
    collected_beside: list[bool] = []

    def build() -> nn.Module:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(200)))
        built.append(weakref.ref(model))
        return model

    def note(phase: str, info: dict[str, int]) -> None:
        collected_beside.append(any(model() is not None for model in built))

    gc.callbacks.append(note)
    try:
        summarize(build, "float32[B, 2]")
        gc.collect()
    finally:
        gc.callbacks.remove(note)
    assert built
    assert not any(collected_beside)


def test_modules_are_imported_with_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that a call names is imported before models are built: what it makes for itself is real afterwards."""
    (tmp_path / "lately_imported.py").write_text("import torch\ntable = torch.ones(100_000)\nwidth = len\n")
    monkeypatch.syspath_prepend(tmp_path)
    call = {"call": "lately_imported:width", "args": [[1, 2, 3]]}
    result = run(ModelEntry("net", nn.Linear, args=(call, 2)), tmp_path, snapshots=False)
    import lately_imported  # type: ignore[import-not-found]

    assert result.summary is not None, result.error
    assert result.summary.params == 3 * 2 + 2
    assert float(lately_imported.table.sum()) == 100_000


def test_transformers_take_their_config(tmp_path: Path) -> None:
    """GPT-2 in small, as published: 12 * width^2 + 13 * width for each block, tables, and the last norm."""
    pytest.importorskip("transformers")
    [entry] = entries(
        tmp_path,
        "    build: transformers:GPT2LMHeadModel\n"
        '    args: [{call: "transformers:GPT2Config", kwargs: {n_layer: 2, n_embd: 64, n_head: 4, vocab_size: 100, '
        "n_positions: 32}}]\n"
        '    inputs: {input_ids: "int64[B, 16]"}\n',
    )
    result = run(entry, tmp_path, snapshots=False)
    assert result.summary is not None, result.error
    assert result.summary.params == 2 * (12 * 64 * 64 + 13 * 64) + (100 + 32) * 64 + 2 * 64


@pytest.mark.parametrize(
    ("rank", "words"),
    [pytest.param("0", ["pip install 'pytest-modelbudget[mlflow]'"], id="first"), pytest.param("3", [], id="another")],
)
def test_a_training_goes_on_without_mlflow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: str, words: list[str]
) -> None:
    """The first of its processes is told how to get it, the others are not."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv("RANK", rank)
    assert log_summary(Mixer(), "float32[B, 6, 4]") is None
    assert [word in record.getMessage() for word, record in zip(words, caplog.records, strict=True)] == [True] * len(
        words
    )
