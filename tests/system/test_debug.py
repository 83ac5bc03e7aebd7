"""`MODELBUDGET_DEBUG` shows what each layer of the torch engine did, and which of them gets a shape wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch
from torch import nn

from pytest_modelbudget import plan, summarize
from pytest_modelbudget.backends.torch.memory import shown
from pytest_modelbudget.backends.torch.meta import cache, shape_rules
from pytest_modelbudget.backends.torch.replay import fingerprint
from pytest_modelbudget.cli import main
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.isolation import Isolation
from pytest_modelbudget.system.debug import VARIABLE, Debug, parse
from tests.project import Project


class Pooled(nn.Module):
    """The mean of the columns, as a column."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True)


class Halves(nn.Module):
    """An operator on two sizes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()[:, :3].exp()


class Narrow(nn.Module):
    """A block that keeps some columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.act, self.columns = nn.ReLU(), columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x)[:, : self.columns]


def blocks() -> nn.Module:
    """Two blocks that do the same, and one that does not."""
    return nn.Sequential(Narrow(5), Narrow(5), Narrow(3))


def _without_keepdim(patch: pytest.MonkeyPatch) -> None:
    mean = shape_rules._mean
    patch.setitem(shape_rules._RULES, "mean.dim", lambda data, dim, keepdim=False: mean(data, dim))


def _without_sizes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache, "_args_key", lambda values: tuple(type(value) for value in values))


def _without_attributes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fingerprint.Fingerprints, "_number", lambda self, modules: hash(type(modules[0])))


@pytest.mark.parametrize(
    ("fault", "guilty", "model"),
    [
        pytest.param(_without_keepdim, "rules", Pooled, id="a rule"),
        pytest.param(_without_sizes, "cache", Halves, id="the cache"),
        pytest.param(_without_attributes, "replay", blocks, id="a replay"),
    ],
)
def test_a_wrong_shape_is_right_without_the_layer_of_the_engine_that_is_at_fault(
    fault: Callable[[pytest.MonkeyPatch], None],
    guilty: str,
    model: Callable[[], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And stays wrong without the others; right is what the model gives on values."""
    right = tuple(model()(torch.zeros(4, 5)).shape)
    fault(monkeypatch)
    for without in ("", "no-rules", "no-cache", "no-replay"):
        monkeypatch.setenv(VARIABLE, without)
        (output,) = summarize(model, "float32[4, 5]").outputs
        assert (output.shape == right) is (without == f"no-{guilty}"), without


SAME = nn.Sequential(*(nn.Sequential(nn.Linear(5, 5)) for _ in range(3)))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], list[str]]]:
    """The lines of a word for three equal blocks, without their first column."""

    def written(word: str) -> list[str]:
        monkeypatch.setenv(VARIABLE, word)
        summarize(SAME, "float32[4, 5]")
        return [line.removeprefix("modelbudget ") for line in capsys.readouterr().err.splitlines()]

    return written


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        pytest.param("", [], id="nothing"),
        pytest.param(
            "replay",
            ["0 | ran, and is recorded", "1 | ran, and is verified: it did the same as one like it", "2 | replayed"],
            id="blocks",
        ),
        pytest.param(
            "trace",
            [
                "(model) | a pass on 0: float32[4, 5]",
                "0.0 | Linear: float32[4, 5] -> float32[4, 5]",
                "0 | Sequential: float32[4, 5] -> float32[4, 5]",
                "1.0 | Linear: float32[4, 5] -> float32[4, 5]",
                "1 | Sequential: float32[4, 5] -> float32[4, 5]",
                "2 | Sequential: float32[4, 5] -> float32[4, 5]",
                "(root) | Sequential: float32[4, 5] -> float32[4, 5]",
            ],
            id="calls, without those inside of a replayed block",
        ),
        pytest.param(
            "rules,no-cache",
            [
                "0.0 | aten.t.default(float32[5, 5]) -> float32[5, 5]: by torch (a view)",
                "0.0 | aten.addmm.default(float32[5], float32[4, 5], float32[5, 5]) -> float32[4, 5]: by rule",
            ],
            id="rules",
        ),
        pytest.param(
            "rules,no-rules",
            [
                "0.0 | aten.t.default(float32[5, 5]) -> float32[5, 5]: by torch (a view)",
                "0.0 | aten.addmm.default(float32[5], float32[4, 5], float32[5, 5]) -> float32[4, 5]: by torch",
            ],
            id="no rules",
        ),
        pytest.param(
            "cache",
            [
                "0.0 | aten.addmm.default(float32[5], float32[4, 5], float32[5, 5]) -> float32[4, 5]: miss",
                "1.0 | aten.addmm.default(float32[5], float32[4, 5], float32[5, 5]) -> float32[4, 5]: hit",
            ],
            id="results of operators",
        ),
    ],
)
def test_a_topic_says_what_its_layer_did(lines: Callable[[str], list[str]], word: str, expected: list[str]) -> None:
    """In order, each line with the layer of the model at work."""
    topic = word.partition(",")[0]
    assert [line.removeprefix(f"{topic:<6} | ") for line in lines(word)[: len(expected) or None]] == expected


def test_memory_is_written_up_to_a_number_of_events(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A product of 4 * 5 floats of 4 bytes comes first; two more follow, and the first two results go."""
    monkeypatch.setenv(VARIABLE, "memory")
    monkeypatch.setattr(shown, "MOST_EVENTS", 1)
    plan(SAME, "float32[4, 5]", inference={})
    held, first, left_out = capsys.readouterr().err.splitlines()
    assert held.endswith(f"7 storages of {4 * (4 * 5 + 3 * (5 * 5 + 5))} bytes are held before the run")
    assert re.search(r"memory \| 0\.0 \| forward: aten\.addmm, \+7: 80\b", first)
    assert left_out.endswith("3 more events are not shown")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", Debug(), id="empty"),
        pytest.param(" Trace, ,no-cache", Debug(frozenset({"trace"}), frozenset({"cache"})), id="spaces and capitals"),
        pytest.param("all", Debug(frozenset({"trace", "replay", "cache", "rules", "memory"})), id="all"),
    ],
)
def test_words(text: str, expected: Debug) -> None:
    """A comma-separated list."""
    assert parse(text) == expected


def test_an_unknown_word_is_one_error(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the run, not of each model; it says which words there are."""
    said = "MODELBUDGET_DEBUG: unknown: no-trace, tarce"
    with pytest.raises(
        ModelBudgetError, match=f"{said}\n  it takes trace, replay, cache, rules, memory, all, no-replay"
    ):
        parse("tarce,no-trace")
    monkeypatch.setenv(VARIABLE, "tarce,no-trace")
    assert main(["show", "zoo:small", "--inputs", "float32[B, 32]"]) == 2
    assert capsys.readouterr().err.count(said) == 1
    assert str(project.run().stderr).count(said) == 1


def test_lines_come_from_the_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With what the model itself prints, to the process that asked for it."""
    monkeypatch.setenv(VARIABLE, "trace")
    entry = ModelEntry(id="relu", build=nn.ReLU, inputs="float32[4, 5]")
    with closing(Isolation()) as isolation:
        isolation.count(entry)
    assert "modelbudget trace  | (root) | ReLU: float32[4, 5] -> float32[4, 5]\n" in capsys.readouterr().err
