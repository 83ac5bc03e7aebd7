"""Values of inputs: those that were given reach the model, and those that were not are never made up in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from pytest_modelbudget import ModelBudgetError, Summary, plan, summarize
from tests.backends.torch.trace.steered import LENGTHS, Steered, X, counted, really


def outcome(way: Any, inputs: list[str]) -> tuple[Summary | None, str]:
    """What is counted, or why it is not."""
    try:
        return summarize(lambda: Steered(way), inputs, name="m"), ""
    except ModelBudgetError as failure:
        return None, str(failure)


def repeated(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    for _ in range(n):  # type: ignore[call-overload]
        x = layer(x)
    return x


def by_rows(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return torch.cat([layer(row[:length]) for row, length in zip(x, n.tolist(), strict=True)])


def packed(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return layer(rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False).data)


def selected(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return layer(x)[n]


MASK = torch.tensor([True, False, True])
WAYS = [
    pytest.param(lambda layer, x, n: layer(x[:, : int(n)]), torch.tensor(3), id="int()"),
    pytest.param(lambda layer, x, n: layer(x[:, :n]), torch.tensor(3), id="end of a slice"),
    pytest.param(repeated, torch.tensor(3), id="range()"),
    pytest.param(lambda layer, x, n: layer(x) if n > 0 else x, torch.tensor(3), id="comparison"),
    pytest.param(lambda layer, x, n: layer(x) if n else x, torch.tensor(True), id="truth"),
    pytest.param(lambda layer, x, n: layer(x[:, : n.max()]), LENGTHS, id="largest length"),
    pytest.param(by_rows, LENGTHS, id="tolist()"),
    pytest.param(packed, LENGTHS, id="packed sequence"),
    pytest.param(lambda layer, x, n: layer(x[:, : int(n.numpy()[0])]), LENGTHS, id="numpy()"),
    pytest.param(lambda layer, x, n: layer(x[:, : int(numpy.asarray(n)[0])]), LENGTHS, id="array of numpy"),
    pytest.param(lambda layer, x, n: layer(x[:, : int(numpy.from_dlpack(n)[0])]), LENGTHS, id="dlpack"),
    pytest.param(lambda layer, x, n: layer(x[:, : torch.tensor([n[0], n[1]]).max()]), LENGTHS, id="tensor of a list"),
    pytest.param(lambda layer, x, n: layer(x) if "0, 0" in str(n) else x, torch.tensor([0, 0]), id="text"),
    pytest.param(lambda layer, x, n: layer(x.repeat_interleave(n, 0)), LENGTHS, id="repeated rows"),
    pytest.param(lambda layer, x, n: layer(x[0].tensor_split(n)[0]), LENGTHS[:1], id="tensor_split"),
    pytest.param(lambda layer, x, n: layer(x[0][n.unique()]), torch.tensor([1, 1, 0]), id="unique"),
    pytest.param(lambda layer, x, n: layer(x[n.nonzero()[:, 0]]), torch.tensor([1, 0, 1]), id="nonzero"),
    pytest.param(lambda layer, x, n: layer(x[n]), MASK, id="mask of an input"),
    pytest.param(selected, MASK, id="mask of an activation"),
    pytest.param(lambda layer, x, n: layer(x[torch.arange(3) < n]), torch.tensor(2), id="comparison with positions"),
    pytest.param(lambda layer, x, n: layer(x).masked_select(n[:, None, None]).reshape(-1, 4), MASK, id="masked_select"),
    pytest.param(lambda layer, x, n: layer(x[:, : len(torch.bincount(n))]), torch.tensor([1, 3]), id="bincount"),
    pytest.param(
        lambda layer, x, n: layer(nn.functional.one_hot(n).float() @ x[0, : n.max() + 1]), LENGTHS, id="one_hot"
    ),
    pytest.param(
        lambda layer, x, n: layer(x) if torch.equal(n, torch.ones(3)) else x, torch.ones(3).long(), id="equal"
    ),
]


@pytest.mark.parametrize("kind", ["built", "live"])
@pytest.mark.parametrize(("way", "value"), WAYS)
def test_the_values_of_examples_steer_as_in_a_real_call(way: Any, value: torch.Tensor, kind: str) -> None:
    """FLOPs and output shape are those of a call with the same tensors."""
    model = Steered(way)
    summary = summarize(model if kind == "live" else lambda: Steered(way), lambda: (X, value), name="m")
    assert counted(summary) == really(model, X, value)
    assert not any("assumed" in note for note in summary.notes)


@pytest.mark.parametrize(("way", "value"), WAYS)
def test_values_that_nobody_gave_are_told(way: Any, value: torch.Tensor) -> None:
    """A path that reads one has FLOPs or shapes that are unknown, and a note that says what to write; or it fails so."""
    spec = f"{'bool' if value.dtype is torch.bool else 'int64'}{list(value.shape)}"
    cure = f'give its value, as in "{spec} = {"true" if value.dtype is torch.bool else 3}"'
    summary, failure = outcome(way, ["float32[3, 8, 4]", spec])
    if summary is None:
        assert cure in failure
        return
    assert [note for note in summary.notes if cure in note and "input 1 (" in note]
    assert summary.flops.value is None or None in summary.outputs[0].shape


def looked_up(layer: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(10, 4)
    bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, -1e9)
    return layer(table[ids % 10] + bias[..., None] + torch.ones_like(ids).cumsum(-1)[..., None])


def test_values_that_are_only_computed_with_are_no_matter() -> None:
    """Look-ups, arithmetic and masks that nobody asks for a value need no note."""
    summary = summarize(lambda: Steered(looked_up), ["int64[B, 6]", "int64[B, 6]"], name="m")
    assert summary.notes == ()
    assert counted(summary) == (2 * 6 * 4 * 4, ("B", 6, 4))


def test_a_shape_read_off_an_input_is_no_value() -> None:
    """What is made like an input, but not of its values, may be asked for."""
    way = lambda layer, x, n: layer(x) if torch.ones_like(n).all() else x  # noqa: E731
    assert summarize(lambda: Steered(way), ["float32[3, 4]", "int64[3]"], name="m").notes == ()


def test_a_read_that_changes_nothing_keeps_the_numbers() -> None:
    """Masks that are asked whether all is true, both ways at the same cost: the note says so."""

    def way(layer: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return layer(x) if mask.all() else layer(x * mask[..., None])

    summary = summarize(lambda: Steered(way), ["float32[3, 4]", "bool[3]"], name="m")
    assert counted(summary) == (2 * 3 * 4 * 4, (3, 4))
    [note] = summary.notes
    assert note.startswith("the forward pass reads input 1 (bool[3]); false was assumed")


def test_in_a_real_run_values_that_nobody_gave_are_told_too() -> None:
    """A model that decides by its activations is run with memory; that it reads an input as well is still said."""

    def way(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        return y[: int(n)] if y.sum() > 1e9 else y[: int(n) + 1]

    summary = summarize(lambda: Steered(way), ["float32[3, 4]", "int64[]"], name="m")
    assert summary.real_run
    assert any("input 1 (int64[])" in note for note in summary.notes)


def test_what_a_real_run_makes_of_ids_is_no_value_of_theirs() -> None:
    """After an embedding the numbers are the model's."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(5, 4), nn.Linear(4, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            y = self.layer(self.table(ids))
            return y if y.sum() > 1e9 else y * 2

    summary = summarize(Routed, "int64[2, 3]", name="m")
    assert summary.real_run
    assert not any("input 0" in note for note in summary.notes)


def test_rows_that_depend_on_a_value_are_unknown() -> None:
    """FLOPs of a row, and what is held for its backward pass, are unknown where another value gives other ones."""
    summary = summarize(lambda: Steered(repeated), ["float32[3, 8, 4]", "int64[]"], name="m")
    assert summary.flops.value is None
    assert summary.activation_bytes is None


class Gate(nn.Module):
    """One of two layers, as an input says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
        return self.first(x) if on else self.second(x)


def test_a_layer_that_another_value_calls_is_not_uncalled() -> None:
    """The sum is the same for both ways; whether a layer is called is not known."""
    summary = summarize(Gate, ["float32[3, 4]", "bool[]"], name="m")
    assert counted(summary) == (2 * 3 * 4 * 4, (3, 4))
    assert any("steers" in note for note in summary.notes)
    assert {layer.path: layer.flops for layer in summary.layers} == {"first": None, "second": None}
    assert summary.layers[0].calls is None


def test_plans_tell_which_values_they_are_for() -> None:
    """The peak of a step whose length was made up says so."""
    way = lambda layer, x, n: layer(x[:, : int(n) + 1])  # noqa: E731
    made_up = plan(lambda: Steered(way), ["float32[3, 8, 4]", "int64[]"], inference=True, name="m")
    assert any('as in "int64[] = 3"' in note for note in made_up.notes)
    assert plan(lambda: Steered(way), ["float32[3, 8, 4]", "int64[] = 3"], inference=True, name="m").notes == ()


# What was declared


def test_a_declared_number_is_the_value() -> None:
    """As in a real call with it, and without a note."""
    summary = summarize(lambda: Steered(repeated), ["float32[3, 8, 4]", "int64[] = 3"], name="m")
    assert counted(summary) == really(Steered(repeated), X, torch.tensor(3))
    assert summary.notes == ()
    assert str(summary.inputs[1]) == "1 int64[] = 3"


def test_a_declared_word_is_the_value() -> None:
    """`true` for every element of a mask."""
    summary = summarize(lambda: Steered(selected), ["float32[3, 8, 4]", "bool[3] = true"], name="m")
    assert counted(summary) == really(Steered(selected), X, torch.ones(3, dtype=torch.bool))


def test_a_declared_float_is_the_value() -> None:
    """A threshold decides, although floats have no values otherwise."""
    way = lambda layer, x, t: layer(x) if t > 0.5 else x  # noqa: E731
    for threshold in (0.25, 0.75):
        summary = summarize(lambda: Steered(way), ["float32[3, 8, 4]", f"float32[] = {threshold}"], name="m")
        assert counted(summary) == really(Steered(way), X, torch.tensor(threshold))
        assert not summary.real_run


def test_a_declared_state_is_where_the_layer_is() -> None:
    """Floats of several dimensions have to be on the device of the weights."""
    summary = summarize(lambda: nn.GRU(4, 5), ["float32[3, 2, 4]", "float32[1, 2, 5] = 0"], name="m")
    assert summary.outputs[0].shape == (3, 2, 5)
    assert not summary.real_run


def test_a_declared_dimension_follows_its_size(count: Callable[..., Summary]) -> None:
    """Lengths that are T at every size: what is cut to them is T long."""
    way = lambda layer, x, n: layer(x[:, : n.max()])  # noqa: E731
    summary = count(lambda: Steered(way), ["float32[B, 50, 4]", "int64[B] = T"], B=2, T=9)
    assert counted(summary) == (2 * 2 * 9 * 4 * 4, ("B", "T", 4))
    assert summary.notes == ()


def test_ids_below_a_bound() -> None:
    """They are spread over the range, the same each time, and differ between inputs."""
    seen: list[torch.Tensor] = []

    def way(layer: nn.Module, x: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
        seen.extend(ids)
        return layer(x)

    for _ in range(2):
        summarize(lambda: Steered(way), ["float32[3, 4]", "int64[4, 50] < 7", "int64[4, 50] < 7"], name="m")
    first, second = seen[:2]
    assert set(first.unique().tolist()) == set(range(7))
    assert not torch.equal(first, second)
    assert all(torch.equal(one, first) for one in seen[::2])


def test_what_depends_on_drawn_ids_is_unknown() -> None:
    """A bound is no value: how many are not 0 follows from the draw."""

    def way(layer: nn.Module, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return layer(x[ids != 0])

    summary = summarize(lambda: Steered(way), ["float32[64, 4]", "int64[64] < 3"], name="m")
    assert counted(summary) == (None, (None, 4))
    assert any("numbers below 3 were drawn" in note and '"int64[64] = 3"' in note for note in summary.notes)


def test_ids_that_are_all_different_by_luck() -> None:
    """Few of many ids are rarely the same, so a pass on equal ones shows that their number matters."""

    def way(layer: nn.Module, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return layer(x[ids.unique()])

    summary = summarize(lambda: Steered(way), ["float32[1000, 4]", "int64[5] < 1000"], name="m")
    assert counted(summary) == (None, (None, 4))


def test_a_value_that_the_size_makes_too_large(count: Callable[..., Summary]) -> None:
    """A dimension's size has to fit into the dtype."""
    with pytest.raises(ModelBudgetError, match=r"inputs: 1: int8\[B\] = T: 300 does not fit into int8"):
        count(lambda: Steered(selected), ["float32[B, 8, 4]", "int8[B] = T"], B=3, T=300)
